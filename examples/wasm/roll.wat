;; Rolls dice: leaves a line of random hexadecimal digits in `/job/output/roll.txt`. In deterministic mode the same task of the same
;; job rolls the same everywhere.
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "roll.txt")
  (data (i32.const 128) "0123456789abcdef")

  (func (export "_start")
    (local $n i32)
    (if (call $random_get (i32.const 256) (i32.const 32)) (then (unreachable)))
    (loop $digit
      (i32.store8 offset=512 (local.get $n)
        (i32.load8_u offset=128 (i32.and (i32.load8_u offset=256 (local.get $n)) (i32.const 15))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $digit (i32.lt_u (local.get $n) (i32.const 32))))
    (i32.store8 (i32.const 544) (i32.const 10))
    ;; Descriptor 5 is `/job/output`; 1 makes the file; the right is to write.
    (if (call $path_open (i32.const 5) (i32.const 0) (i32.const 64) (i32.const 8) (i32.const 1)
          (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 16))
      (then (unreachable)))
    (i32.store (i32.const 0) (i32.const 512))
    (i32.store (i32.const 4) (i32.const 33))
    (if (call $fd_write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))))
