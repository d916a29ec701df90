;; A reducer: its input is lines of a word, a tab and a 1, sorted by word. Prints each word once, a tab, and how often it came.
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  ;; Below 64: where reads and writes say what they did, and digits. From 64 KiB: the whole input.
  (memory $memory (export "memory") 2)

  (func (export "_start")
    (local $end i32)
    (local $at i32)
    (local $word i32)
    (local $len i32)
    (local $tab i32)
    (local $count i32)
    (local.set $end (call $read_all))
    (local.set $at (i32.const 65536))
    (local.set $word (local.get $at))
    (block $done
      (loop $line
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (local.set $tab (call $find (local.get $at) (i32.const 9)))
        (if (i32.eqz (call $same (local.get $word) (local.get $len) (local.get $at) (i32.sub (local.get $tab) (local.get $at))))
          (then
            (call $tell (local.get $word) (local.get $len) (local.get $count))
            (local.set $word (local.get $at))
            (local.set $len (i32.sub (local.get $tab) (local.get $at)))
            (local.set $count (i32.const 0))))
        (local.set $count (i32.add (local.get $count) (i32.const 1)))
        (local.set $at (i32.add (call $find (local.get $tab) (i32.const 10)) (i32.const 1)))
        (br $line)))
    (call $tell (local.get $word) (local.get $len) (local.get $count)))

  ;; Reads all there is, making memory larger as needed; gives its end.
  (func $read_all (result i32)
    (local $end i32)
    (local.set $end (i32.const 65536))
    (block $done
      (loop $more
        (if (i32.lt_u (i32.sub (i32.mul (memory.size) (i32.const 65536)) (local.get $end)) (i32.const 32768))
          (then (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable)))))
        (i32.store (i32.const 0) (local.get $end))
        (i32.store (i32.const 4) (i32.const 32768))
        (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
        (br_if $done (i32.eqz (i32.load (i32.const 8))))
        (local.set $end (i32.add (local.get $end) (i32.load (i32.const 8))))
        (br $more)))
    (local.get $end))

  ;; Where a byte comes next.
  (func $find (param $at i32) (param $byte i32) (result i32)
    (loop $on
      (if (i32.ne (i32.load8_u (local.get $at)) (local.get $byte))
        (then
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $on))))
    (local.get $at))

  ;; Whether two words are the same. None is the same as one that is empty, as is the first of all.
  (func $same (param $a i32) (param $a_len i32) (param $b i32) (param $b_len i32) (result i32)
    (if (i32.ne (local.get $a_len) (local.get $b_len)) (then (return (i32.const 0))))
    (loop $on
      (if (i32.eqz (local.get $a_len)) (then (return (i32.const 1))))
      (local.set $a_len (i32.sub (local.get $a_len) (i32.const 1)))
      (br_if $on
        (i32.eq
          (i32.load8_u (i32.add (local.get $a) (local.get $a_len)))
          (i32.load8_u (i32.add (local.get $b) (local.get $a_len))))))
    (i32.const 0))

  ;; Prints a word and its count, if there is any.
  (func $tell (param $word i32) (param $len i32) (param $count i32)
    (local $at i32)
    (if (i32.eqz (local.get $count)) (then (return)))
    (local.set $at (i32.const 63))
    (i32.store8 (i32.const 63) (i32.const 10))
    (loop $digit
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (i32.store8 (local.get $at) (i32.add (i32.const 48) (i32.rem_u (local.get $count) (i32.const 10))))
      (local.set $count (i32.div_u (local.get $count) (i32.const 10)))
      (br_if $digit (local.get $count)))
    (local.set $at (i32.sub (local.get $at) (i32.const 1)))
    (i32.store8 (local.get $at) (i32.const 9))
    (call $print (local.get $word) (local.get $len))
    (call $print (local.get $at) (i32.sub (i32.const 64) (local.get $at))))

  (func $print (param $at i32) (param $len i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $len))
    (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))))
