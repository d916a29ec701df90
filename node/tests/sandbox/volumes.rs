//! Directories that the operator offers: what programs find of them, and that nothing leads out of them.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_node::exec::volumes::Mounted;

use crate::rig::{Rig, all_refused, all_refused_with, all_worked};

/// Directories as an operator would have them: everybody may read the one and write to the other.
struct Offered {
    dir: tempfile::TempDir,
}

impl Offered {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("mode");
        let offered = Self { dir };
        for name in ["sets", "out"] {
            std::fs::create_dir(offered.at(name)).expect("dir");
            // So that nothing but the mount keeps anybody from writing.
            std::fs::set_permissions(offered.at(name), Permissions::from_mode(0o777)).expect("mode");
        }
        std::fs::write(offered.at("sets/file"), "content").expect("file");
        std::fs::set_permissions(offered.at("sets/file"), Permissions::from_mode(0o666)).expect("mode");
        std::fs::write(offered.at("secret"), "the secret").expect("file");
        offered
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn volume(&self, name: &str, path: &str, read_only: bool) -> Mounted {
        let (name, path) = (name.to_owned(), PathBuf::from(path));
        Mounted { host: self.at(&name), name, path, read_only }
    }
}

#[test]
fn a_read_only_volume_is_read_and_not_written_to() {
    let offered = Offered::new();
    let mut rig = Rig::sandboxed();
    rig.volumes = vec![offered.volume("sets", "/srv/data", true)];
    let read = "print(os.environ['SINEW_VOLUME_SETS'], open('/srv/data/file').read())";
    assert_eq!(rig.python(read).text(), "/srv/data content");
    let changes = "
attempt('write', lambda: open('/srv/data/file', 'w'))
attempt('append', lambda: open('/srv/data/file', 'a'))
attempt('create', lambda: open('/srv/data/new', 'w'))
attempt('mkdir', lambda: os.mkdir('/srv/data/dir'))
attempt('unlink', lambda: os.unlink('/srv/data/file'))
attempt('rename', lambda: os.rename('/srv/data/file', '/srv/data/other'))
attempt('symlink', lambda: os.symlink('x', '/srv/data/link'))
";
    all_refused_with("EROFS", rig.python(changes).text());
    let more = "
attempt('chmod', lambda: os.chmod('/srv/data/file', 0o777))
attempt('link', lambda: os.link('/srv/data/file', '/job/output/file'))
attempt('remount', lambda: call(libc.mount, None, b'/srv/data', None, 32 | 4096, None))
attempt('unmount', lambda: call(libc.umount2, b'/srv/data', 2))
attempt('beside', lambda: open('/srv/new', 'w'))
";
    all_refused(rig.python(more).text());
    let mounts = rig.python("print(open('/proc/self/mountinfo').read())").text().to_owned();
    let options = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/srv/data")).expect("the mount");
    assert!(options.split(' ').nth(5).is_some_and(|o| o.starts_with("ro,nosuid,nodev")), "{options}");
    assert_eq!(std::fs::read_to_string(offered.at("sets/file")).expect("file"), "content");
}

#[test]
fn a_writable_volume_keeps_what_is_written_to_it() {
    let offered = Offered::new();
    let mut rig = Rig::sandboxed();
    rig.volumes = vec![offered.volume("sets", "/data/sets", true), offered.volume("out", "/data/out", false)];
    all_worked(rig.python("attempt('write', lambda: open('/data/out/new', 'w').write('text'))").text());
    all_refused_with("EROFS", rig.python("attempt('write', lambda: open('/data/sets/new', 'w'))").text());
    assert_eq!(std::fs::read_to_string(offered.at("out/new")).expect("file"), "text");
    // A program that lies in a volume is one like any other.
    std::fs::write(offered.at("sets/tool"), "#!/bin/sh\necho tool $1\n").expect("tool");
    std::fs::set_permissions(offered.at("sets/tool"), Permissions::from_mode(0o755)).expect("mode");
    assert_eq!(rig.run(&["/data/sets/tool", "runs"]).text(), "tool runs");
    rig.run(&["/data/sets/../../usr/bin/no-such"]).fails_with(ErrorCode::Invalid);
    // A task without the volumes finds nothing of them, in the same slot and job.
    rig.volumes.clear();
    all_refused_with("ENOENT", rig.python("attempt('list', lambda: os.listdir('/data'))").text());
}

#[test]
fn nothing_leads_out_of_a_volume() {
    let offered = Offered::new();
    let (secret, sets) = (offered.at("secret"), offered.at("sets"));
    symlink("../secret", sets.join("up")).expect("link");
    symlink(&secret, sets.join("absolute")).expect("link");
    symlink("..", sets.join("dir")).expect("link");
    let script = |at: &Path| {
        format!(
            "for path in ['up', 'absolute', 'dir/secret', '../secret', 'dir/../../secret']:\n    \
             attempt(path, lambda: open({at:?} + '/' + path).read())"
        )
    };
    // On the host these lead where they say, all but the last.
    let bare = Rig::bare().python(&script(&sets)).text().to_owned();
    assert_eq!(bare.lines().filter(|line| line.contains("worked: the secret")).count(), 4, "{bare}");
    let mut rig = Rig::sandboxed();
    for read_only in [true, false] {
        rig.volumes = vec![offered.volume("sets", "/data", read_only)];
        all_refused(rig.python(&script(Path::new("/data"))).text());
    }
    // Nor does a link that a program makes itself.
    let own = format!(
        "os.symlink({secret:?}, '/data/own')\nos.symlink('../../../../..', '/data/root')\n\
         attempt('own', lambda: open('/data/own').read())\n\
         attempt('root', lambda: open('/data/root' + {secret:?}).read())"
    );
    all_refused(rig.python(&own).text());
}

/// Without a sandbox programs are told where the directory is on the host.
#[test]
fn bare_programs_find_the_directory_itself() {
    let offered = Offered::new();
    let mut rig = Rig::bare();
    rig.volumes = vec![offered.volume("out", "/data", false)];
    let ran = rig.run(&["sh", "-c", "echo text > $SINEW_VOLUME_OUT/new; echo $SINEW_VOLUME_OUT"]);
    assert_eq!(ran.text(), offered.at("out").display().to_string());
    assert_eq!(std::fs::read_to_string(offered.at("out/new")).expect("file"), "text\n");
}
