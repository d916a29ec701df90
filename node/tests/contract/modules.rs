//! Test programs as WebAssembly text: what each does, behind the imports and helpers that they share.
//!
//! Memory: below 1024 is scratch, from 1024 on are a program's texts, from 64 KiB on its buffers. Directories are descriptors 3 (`.`),
//! 4 (`/job/work`), 5 (`/job/output`) and, where the job has files, 6 (`/input`).

use std::fmt::Write;

/// Imports, one memory, and helpers.
const PRELUDE: &str = r#"
(import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "clock_time_get" (func $clock_time_get (param i32 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_filestat_get" (func $fd_filestat_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_filestat_set_size" (func $fd_filestat_set_size (param i32 i64) (result i32)))
(import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_readdir" (func $fd_readdir (param i32 i32 i32 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_create_directory" (func $path_create_directory (param i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_filestat_get" (func $path_filestat_get (param i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_link" (func $path_link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_open" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_rename" (func $path_rename (param i32 i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_symlink" (func $path_symlink (param i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_unlink_file" (func $path_unlink_file (param i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
(import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "sock_accept" (func $sock_accept (param i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "sock_send" (func $sock_send (param i32 i32 i32 i32 i32) (result i32)))
(memory (export "memory") 4)

;; Writes bytes to a descriptor; gives the error number.
(func $write (param $fd i32) (param $at i32) (param $len i32) (result i32)
  (i32.store (i32.const 0) (local.get $at))
  (i32.store (i32.const 4) (local.get $len))
  (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))

;; Prints a number and ends the line.
(func $number (param $n i32)
  (local $at i32)
  (local.set $at (i32.const 63))
  (i32.store8 (i32.const 63) (i32.const 10))
  (loop $digit
    (local.set $at (i32.sub (local.get $at) (i32.const 1)))
    (i32.store8 (local.get $at) (i32.add (i32.const 48) (i32.rem_u (local.get $n) (i32.const 10))))
    (local.set $n (i32.div_u (local.get $n) (i32.const 10)))
    (br_if $digit (local.get $n)))
  (drop (call $write (i32.const 1) (local.get $at) (i32.sub (i32.const 64) (local.get $at)))))

;; Reads up to 64 KiB into the buffer at 64 KiB; gives how much.
(func $read (param $fd i32) (result i32)
  (i32.store (i32.const 0) (i32.const 65536))
  (i32.store (i32.const 4) (i32.const 65536))
  (if (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then (return (i32.const 0))))
  (i32.load (i32.const 8)))

;; Opens a path below a directory, with open flags (1 makes it) and rights; gives the error number and leaves the descriptor at 16.
(func $open (param $dir i32) (param $path i32) (param $len i32) (param $flags i32) (param $rights i64) (result i32)
  (call $path_open (local.get $dir) (i32.const 1) (local.get $path) (local.get $len) (local.get $flags)
    (local.get $rights) (local.get $rights) (i32.const 0) (i32.const 16)))

;; Copies what can be read from one descriptor to another.
(func $copy (param $from i32) (param $to i32)
  (local $len i32)
  (block $end
    (loop $more
      (local.set $len (call $read (local.get $from)))
      (br_if $end (i32.eqz (local.get $len)))
      (if (call $write (local.get $to) (i32.const 65536) (local.get $len)) (then (unreachable)))
      (br $more))))
"#;

/// Rights to read and to write a file.
pub(crate) const READ: &str = "(i64.const 2)";
pub(crate) const WRITE: &str = "(i64.const 64)";

/// A module whose `_start` is `body`, with these texts in memory. In `body`, `{name}` stands for a text's address and length.
pub(crate) fn module(texts: &[(&str, &str)], body: &str) -> Vec<u8> {
    let (mut data, mut body, mut at) = (String::new(), body.to_owned(), 1_024);
    for (name, text) in texts {
        let bytes: String = text.bytes().fold(String::new(), |mut all, byte| {
            write!(all, "\\{byte:02x}").expect("memory");
            all
        });
        writeln!(data, "(data (i32.const {at}) \"{bytes}\")").expect("memory");
        body = body.replace(&format!("{{{name}}}"), &format!("(i32.const {at}) (i32.const {})", text.len()));
        at += text.len() + 1;
    }
    whole(&format!("{PRELUDE}{data}(func (export \"_start\") {body})"))
}

/// A module of nothing but this.
pub(crate) fn whole(text: &str) -> Vec<u8> {
    wat::parse_str(format!("(module {text})")).unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) fn succeed() -> Vec<u8> {
    module(&[], "")
}

pub(crate) fn exit_three() -> Vec<u8> {
    let body = "(drop (call $write (i32.const 2) {text})) (call $proc_exit (i32.const 3))";
    module(&[("text", "that was wrong\n")], body)
}

pub(crate) fn print() -> Vec<u8> {
    module(&[("text", "hello\n")], "(drop (call $write (i32.const 1) {text}))")
}

pub(crate) fn copy_stdin() -> Vec<u8> {
    module(&[], "(call $copy (i32.const 0) (i32.const 1))")
}

pub(crate) fn copy_file() -> Vec<u8> {
    let body = format!(
        "(local $from i32)
        (if (call $open (i32.const 6) {{in}} (i32.const 0) {READ}) (then (unreachable)))
        (local.set $from (i32.load (i32.const 16)))
        (if (call $open (i32.const 5) {{out}} (i32.const 1) {WRITE}) (then (unreachable)))
        (call $copy (local.get $from) (i32.load (i32.const 16)))"
    );
    module(&[("in", "in.txt"), ("out", "out.txt")], &body)
}

pub(crate) fn show_variables() -> Vec<u8> {
    let body = "
        (drop (call $environ_sizes_get (i32.const 16) (i32.const 20)))
        (drop (call $environ_get (i32.const 32768) (i32.const 65536)))
        (drop (call $write (i32.const 1) (i32.const 65536) (i32.load (i32.const 20))))";
    module(&[], body)
}

pub(crate) fn spin() -> Vec<u8> {
    module(&[], "(loop $on (br $on))")
}

pub(crate) fn linger() -> Vec<u8> {
    // A relative wait on the monotonic clock for as long as can be told.
    let body = "
        (drop (call $write (i32.const 2) {text}))
        (i32.store (i32.const 112) (i32.const 1))
        (i64.store (i32.const 120) (i64.const -1))
        (drop (call $poll_oneoff (i32.const 96) (i32.const 160) (i32.const 1) (i32.const 16)))";
    module(&[("text", "here\n")], body)
}

pub(crate) fn devour() -> Vec<u8> {
    module(&[], "(loop $on (drop (memory.grow (i32.const 16))) (br $on))")
}

pub(crate) fn fill_stdout() -> Vec<u8> {
    module(&[], "(loop $on (drop (call $write (i32.const 1) (i32.const 65536) (i32.const 10000))) (br $on))")
}

pub(crate) fn fill_file() -> Vec<u8> {
    let body = format!(
        "(if (call $open (i32.const 5) {{name}} (i32.const 1) {WRITE}) (then (unreachable)))
        (loop $on
            (drop (call $write (i32.load (i32.const 16)) (i32.const 65536) (i32.const 65536)))
            (br $on))"
    );
    module(&[("name", "big")], &body)
}
