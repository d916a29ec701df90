//! What a directory carries besides its entries: mode, extended attributes (access control lists are among them) and flags. A
//! directory that is used again gets back what it had, so that one task does not find what another wrote there.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    IFlags, Mode, XattrFlags, fchmod, fgetxattr, flistxattr, flistxattr_query, fremovexattr, fsetxattr, fstat,
    ioctl_getflags, ioctl_setflags,
};
use rustix::io::Errno;

/// The bits of a mode that its owner sets.
const MODE: u32 = 0o7777;
/// Bytes of an attribute's value, and of all names of one file: the kernel's limit for both.
const EXTENDED_MAX: usize = 64 * 1024;
/// Attributes that programs without capabilities cannot set: the kernel's own, and those of its security modules.
const NOT_OURS: [&[u8]; 2] = [b"security.", b"trusted."];
/// Flags that the file system changes by itself: how it stores the directory.
const STORAGE: IFlags = IFlags::from_bits_retain(0x1000_1000);

/// What a directory has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    mode: u32,
    extended: BTreeMap<CString, Vec<u8>>,
    /// `None` on a file system without flags.
    flags: Option<IFlags>,
}

impl Attributes {
    /// Looks at a directory.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn of(dir: impl AsFd) -> io::Result<Self> {
        let dir = dir.as_fd();
        let flags = ioctl_getflags(dir).ok().map(|flags| flags.difference(STORAGE));
        Ok(Self { mode: fstat(dir)?.st_mode & MODE, extended: extended(dir)?, flags })
    }

    /// Gives a directory back what it had when it was looked at.
    ///
    /// # Errors
    /// What the system says: then it is not as it was.
    pub(super) fn restore(&self, dir: impl AsFd) -> io::Result<()> {
        let dir = dir.as_fd();
        let now = Self::of(dir)?;
        if now == *self {
            return Ok(());
        }
        if let Some(flags) = self.flags.filter(|_| now.flags != self.flags) {
            ioctl_setflags(dir, flags)?;
        }
        for name in now.extended.keys().filter(|name| !self.extended.contains_key(*name)) {
            fremovexattr(dir, name)?;
        }
        for (name, value) in self.extended.iter().filter(|(name, value)| now.extended.get(*name) != Some(value)) {
            fsetxattr(dir, name, value, XattrFlags::empty())?;
        }
        // Last: access control lists change it.
        fchmod(dir, Mode::from_raw_mode(self.mode))?;
        if Self::of(dir)? == *self { Ok(()) } else { Err(io::Error::other("a directory does not become what it was")) }
    }
}

fn extended(dir: BorrowedFd<'_>) -> io::Result<BTreeMap<CString, Vec<u8>>> {
    let names = match flistxattr_query(dir) {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(BTreeMap::new()),
        Ok(_) => {
            let mut names = vec![0_u8; EXTENDED_MAX];
            let len = flistxattr(dir, &mut names[..])?;
            names.truncate(len);
            names
        }
        Err(e) => return Err(e.into()),
    };
    let ours = |name: &&CStr| !NOT_OURS.iter().any(|prefix| name.to_bytes().starts_with(prefix));
    let names = names.split_inclusive(|byte| *byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok());
    names.filter(ours).map(|name| Ok((name.to_owned(), value(dir, name)?))).collect()
}

fn value(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; EXTENDED_MAX];
    let len = fgetxattr(dir, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_directory_gets_back_what_it_had() {
        let dir = tempfile::tempdir().expect("dir");
        let fd = File::open(dir.path()).expect("open");
        if fsetxattr(&fd, c"user.kept", b"1", XattrFlags::empty()) == Err(Errno::OPNOTSUPP) {
            return eprintln!("not run: the file system of {} has no extended attributes", dir.path().display());
        }
        let own = Attributes::of(&fd).expect("look");
        own.restore(&fd).expect("nothing to do");
        for (name, value) in [(c"user.kept", &b"2"[..]), (c"user.left", b"by a task"), (c"user.empty", b"")] {
            fsetxattr(&fd, name, value, XattrFlags::empty()).expect("set");
        }
        // Version 2, and an entry each for owner, a user, group, mask and others.
        let entry = |tag: u16, rights: u16, id: u32| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let entries = [(1, 7, u32::MAX), (2, 7, 12_345), (4, 7, u32::MAX), (16, 7, u32::MAX), (32, 7, u32::MAX)];
        let list = entries.map(|(tag, rights, id)| entry(tag, rights, id)).concat();
        let list = [&2_u32.to_le_bytes()[..], &list].concat();
        for name in [c"system.posix_acl_access", c"system.posix_acl_default"] {
            match fsetxattr(&fd, name, &list, XattrFlags::empty()) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(e) => panic!("{name:?}: {e}"),
            }
        }
        fchmod(&fd, Mode::from_raw_mode(0o777)).expect("chmod");
        if let Ok(flags) = ioctl_getflags(&fd) {
            ioctl_setflags(&fd, flags | IFlags::NODUMP).expect("flags");
        }
        assert_ne!(Attributes::of(&fd).expect("look"), own);
        own.restore(&fd).expect("restore");
        assert_eq!(Attributes::of(&fd).expect("look"), own);
        assert_eq!(own.extended.get(c"user.kept").map(Vec::as_slice), Some(&b"1"[..]));
    }
}
