//! A daemon that is not root: what is missing is said, and what there is works.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use sinew_crdt_state::network::Network;
use sinew_node::exec::cell::pool::{Sandbox, SandboxMode};
use sinew_node::exec::guardian::NodeTag;

use crate::network::Server;
use crate::rig::{Rig, all_refused, options, policy, runtime};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// Not a test of its own: what the one below runs as another user.
#[test]
fn stand_in() {
    if std::env::var_os("AS_NOBODY").is_none() {
        return;
    }
    let exe = std::env::var_os("CELL_EXE").expect("CELL_EXE").into();
    let strict = sinew_node::exec::cell::pool::SandboxOptions { exe, ..options() };
    let refused = Sandbox::probe(strict.clone(), &NodeTag::new("nobody")).expect_err("no control groups").to_string();
    assert!(refused.contains("memory limit") && refused.contains("best-effort"), "{refused}");
    let lenient = sinew_node::exec::cell::pool::SandboxOptions { mode: SandboxMode::BestEffort, ..strict };
    let mut rig = Rig::with(&lenient);
    let secret = rig.dir.path().join("identity.key");
    crate::rig::secret(&secret);
    let script = format!(
        "
attempt('key', lambda: open({secret:?}).read())
attempt('outside', lambda: open('/usr/x', 'w'))
attempt('rename', lambda: os.rename('/job/work', '/job/other'))
attempt('symlink', lambda: os.symlink('/etc', '/job/x'))
attempt('ptrace', lambda: call(libc.ptrace, 0x4206, 1, 0, 0))
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt('exe', lambda: os.open('/proc/1/exe', os.O_RDONLY))
"
    );
    all_refused(rig.python(&script).text());
    let ran = rig.python(
        "open(os.environ['SINEW_OUTPUT'] + '/x', 'w').write('x')\nprint(os.getuid(), len(os.listdir('/proc')) > 0)",
    );
    assert_eq!((ran.text(), ran.outputs.as_slice()), ("1000 True", &["x".to_owned()][..]));
    // A network takes no root either, ports of the system included.
    let (runtime, server) = (runtime(), Server::shouting());
    rig.let_out(&runtime, &["*", "there.test=127.0.0.1"]);
    rig.network = policy(&[&format!("there.test:{}", server.port()), "there.test"]);
    let talk = format!(
        "
s = socket.create_connection(('there.test', {port}), 20); s.sendall(b'hello'); s.shutdown(socket.SHUT_WR)
print(s.makefile().read())
attempt('address', lambda: socket.create_connection(('127.0.0.1', {port}), 5))
",
        port = server.port()
    );
    assert_eq!(rig.python(&talk).text(), "HELLO.\naddress refused: ECONNREFUSED");
    rig.network = Network::default();
    // What a task closes to its own user, who is this one, goes all the same.
    let closed = "os.makedirs('a/b/c'); open('a/b/x', 'w'); os.chmod('a/b', 0); os.chmod('a', 0)";
    assert_eq!(rig.python(closed).text(), "");
    assert_eq!(rig.python("print(os.listdir('.'))").text(), "[]");
    assert!(!rig.slot.root().job("stuck").exists(), "nothing was put aside");
}

#[test]
fn a_daemon_that_is_not_root_says_what_is_missing_and_isolates_with_the_rest() {
    if !rustix::process::geteuid().is_root() {
        // Then every other test here shows it.
        return;
    }
    // Copies where the other user can read and execute them.
    let dir = tempfile::tempdir().expect("dir");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let (own, cell) = (dir.path().join("test"), dir.path().join("sinew"));
    std::fs::copy(std::env::current_exe().expect("exe"), &own).expect("copy");
    std::fs::copy(env!("CARGO_BIN_EXE_sinew"), &cell).expect("copy");
    let mut command = Command::new(own);
    command.args(["--exact", "unprivileged::stand_in", "--nocapture"]).env("AS_NOBODY", "1").env("CELL_EXE", cell);
    command.env("TMPDIR", dir.path()).current_dir(dir.path()).uid(NOBODY).gid(NOBODY);
    let out = command.output().expect("run");
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"));
}
