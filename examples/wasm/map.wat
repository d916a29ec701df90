;; A mapper: prints each word of its input, a tab and a 1. Words are what spaces and ends of lines keep apart.
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  ;; Below 64: where reads and writes say what they did. From 64 KiB: input. From 128 KiB: output, room for the longest
  ;; that a bufferful of input can become.
  (memory (export "memory") 8)

  (func (export "_start")
    (local $at i32)
    (local $end i32)
    (local $out i32)
    (local $byte i32)
    (local $in_word i32)
    (local.set $out (i32.const 131072))
    (block $done
      (loop $more
        (i32.store (i32.const 0) (i32.const 65536))
        (i32.store (i32.const 4) (i32.const 65536))
        (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
        (br_if $done (i32.eqz (i32.load (i32.const 8))))
        (local.set $at (i32.const 65536))
        (local.set $end (i32.add (i32.const 65536) (i32.load (i32.const 8))))
        (loop $next
          (local.set $byte (i32.load8_u (local.get $at)))
          (if (i32.or (i32.eq (local.get $byte) (i32.const 32)) (i32.eq (local.get $byte) (i32.const 10)))
            (then
              (if (local.get $in_word) (then (local.set $out (call $one (local.get $out)))))
              (local.set $in_word (i32.const 0)))
            (else
              (i32.store8 (local.get $out) (local.get $byte))
              (local.set $out (i32.add (local.get $out) (i32.const 1)))
              (local.set $in_word (i32.const 1))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
        (call $print (i32.sub (local.get $out) (i32.const 131072)))
        (local.set $out (i32.const 131072))
        (br $more)))
    (if (local.get $in_word)
      (then (call $print (i32.sub (call $one (local.get $out)) (i32.const 131072))))))

  ;; Ends a word: tab, 1, end of line. Gives where to go on.
  (func $one (param $out i32) (result i32)
    (i32.store8 (local.get $out) (i32.const 9))
    (i32.store8 offset=1 (local.get $out) (i32.const 49))
    (i32.store8 offset=2 (local.get $out) (i32.const 10))
    (i32.add (local.get $out) (i32.const 3)))

  (func $print (param $len i32)
    (i32.store (i32.const 16) (i32.const 131072))
    (i32.store (i32.const 20) (local.get $len))
    (if (call $fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 8)) (then (unreachable)))))
