// SPDX-License-Identifier: Apache-2.0
//! A thread: `core-TID.img`. What it may do, not what it computes.

use std::ffi::OsString;

use super::{
    file::{ImageFile, Kind},
    ids::Ids,
    message::{FieldError, Message, Tag},
    view::{View, ViewError, only, only_entry},
};

// Source of the fields: CRIU 4.2 images/core.proto, core_entry, task_core_entry, thread_core_entry, and
// images/creds.proto, creds_entry.
const TC: Tag = Tag::new(3, "tc");
const IDS: Tag = Tag::new(4, "ids");
const THREAD_CORE: Tag = Tag::new(5, "thread_core");
const TASK_STATE: Tag = Tag::new(1, "tc.task_state");
const TASK_COMM: Tag = Tag::new(6, "tc.comm");
const OLD_SECCOMP_MODE: Tag = Tag::new(11, "tc.old_seccomp_mode");
const OLD_SECCOMP_FILTER: Tag = Tag::new(12, "tc.old_seccomp_filter");
const OOM_SCORE_ADJ: Tag = Tag::new(14, "tc.oom_score_adj");
const CREDS: Tag = Tag::new(10, "thread_core.creds");
const SECCOMP_MODE: Tag = Tag::new(11, "thread_core.seccomp_mode");
const SECCOMP_FILTER: Tag = Tag::new(12, "thread_core.seccomp_filter");
const THREAD_COMM: Tag = Tag::new(13, "thread_core.comm");

/// A zombie: it comes back as one, nothing of it runs. Source: CRIU 4.2 compel/include/uapi/task-state.h,
/// `COMPEL_TASK_DEAD`.
const TASK_DEAD: u32 = 2;

/// A `core-TID.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// Its name.
    pub comm: OsString,
    /// Who it is and what it may do; `None` only for a zombie.
    pub creds: Option<Creds>,
    /// 0 none, 1 strict, 2 filter. 0 does not mean that the thread will have no filter: see
    /// [`Seccomp::confines`](super::Seccomp::confines).
    pub seccomp_mode: u32,
    /// Its filter in `seccomp.img`, where the mode is 2.
    pub seccomp_filter: u32,
    /// How willing the kernel is to kill it; of the main thread only.
    pub oom_score_adj: Option<i32>,
    /// Its namespaces, where they are noted here and not in `ids-PID.img`.
    pub ids: Option<Ids>,
}

/// Who a thread is and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // each id is what capabilities(7) and credentials(7) call it
pub struct Creds {
    pub uid: u32,
    pub gid: u32,
    pub euid: u32,
    pub egid: u32,
    pub suid: u32,
    pub sgid: u32,
    pub fsuid: u32,
    pub fsgid: u32,
    /// Supplementary groups. If there are none, CRIU leaves the thread those of its own process.
    pub groups: Vec<u32>,
    /// Inheritable capabilities; bit N is capability N.
    pub cap_inh: u64,
    /// Permitted capabilities.
    pub cap_prm: u64,
    /// Effective capabilities.
    pub cap_eff: u64,
    /// The bounding set.
    pub cap_bnd: u64,
    /// Ambient capabilities.
    pub cap_amb: u64,
    /// Secure bits.
    pub secbits: u32,
    /// No gain of privileges by execve.
    pub no_new_privs: bool,
    /// The profile of the security module, as CRIU has it (`apparmor:NAME`).
    pub lsm_profile: Option<OsString>,
    /// The label for new sockets.
    pub lsm_sockcreate: Option<OsString>,
}

impl View for Core {
    const KIND: Kind = Kind::Core;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        core(&only_entry(image, Self::KIND)?).map_err(only)
    }
}

fn core(entry: &Message) -> Result<Core, FieldError> {
    let task = entry.message(TC)?.unwrap_or_default();
    // CRIU lets these win over the thread's own, current ones.
    for old in [OLD_SECCOMP_MODE, OLD_SECCOMP_FILTER] {
        if task.has(old) {
            return Err(old.out_of_range());
        }
    }
    let dead = task.u32(TASK_STATE)? == Some(TASK_DEAD);
    // Without these CRIU looks for an older image, or leaves the thread what CRIU itself may do.
    let thread = if dead { entry.message(THREAD_CORE)? } else { Some(entry.required_message(THREAD_CORE)?) };
    let thread = thread.unwrap_or_default();
    let creds = if dead { thread.message(CREDS)? } else { Some(thread.required_message(CREDS)?) };
    let comm = match task.text(TASK_COMM)? {
        Some(comm) => comm,
        None => thread.text(THREAD_COMM)?.unwrap_or_default(),
    };
    Ok(Core {
        comm,
        creds: creds.as_ref().map(credentials).transpose()?,
        seccomp_mode: thread.u32(SECCOMP_MODE)?.unwrap_or(0),
        seccomp_filter: thread.u32(SECCOMP_FILTER)?.unwrap_or(0),
        oom_score_adj: task.i32(OOM_SCORE_ADJ)?,
        ids: entry.message(IDS)?.map(|ids| Ids::of(&ids)).transpose()?,
    })
}

fn credentials(entry: &Message) -> Result<Creds, FieldError> {
    let id = |number, name| entry.required_u32(Tag::new(number, name));
    let caps = |number, name| capabilities(entry, Tag::new(number, name));
    Ok(Creds {
        uid: id(1, "creds.uid")?,
        gid: id(2, "creds.gid")?,
        euid: id(3, "creds.euid")?,
        egid: id(4, "creds.egid")?,
        suid: id(5, "creds.suid")?,
        sgid: id(6, "creds.sgid")?,
        fsuid: id(7, "creds.fsuid")?,
        fsgid: id(8, "creds.fsgid")?,
        groups: entry.u32s(Tag::new(14, "creds.groups"))?,
        cap_inh: caps(9, "creds.cap_inh")?,
        cap_prm: caps(10, "creds.cap_prm")?,
        cap_eff: caps(11, "creds.cap_eff")?,
        cap_bnd: caps(12, "creds.cap_bnd")?,
        cap_amb: caps(19, "creds.cap_amb")?,
        secbits: id(13, "creds.secbits")?,
        no_new_privs: entry.u32(Tag::new(18, "creds.no_new_privs"))?.is_some_and(|value| value != 0),
        lsm_profile: entry.text(Tag::new(15, "creds.lsm_profile"))?,
        lsm_sockcreate: entry.text(Tag::new(16, "creds.lsm_sockcreate"))?,
    })
}

/// A set of capabilities: up to two words, the lower one first.
fn capabilities(entry: &Message, tag: Tag) -> Result<u64, FieldError> {
    match entry.u32s(tag)?[..] {
        [] => Ok(0),
        [low] => Ok(u64::from(low)),
        [low, high] => Ok(u64::from(low) | u64::from(high) << 32),
        [_, _, _, ..] => Err(tag.out_of_range()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn creds() -> Message {
        let mut creds = Message::default();
        for number in 1..=8 {
            creds.set_u64(Tag::new(number, "id"), u64::from(number) + 1000);
        }
        for number in [9, 10, 11, 12, 19] {
            creds.set_u32s(Tag::new(number, "cap"), &[number, 1]);
        }
        creds.set_u64(Tag::new(13, "secbits"), 0);
        creds.set_u32s(Tag::new(14, "groups"), &[5, 6]);
        creds.set_u64(Tag::new(18, "no_new_privs"), 1);
        creds
    }

    fn image(task: &Message, creds: Option<&Message>) -> ImageFile {
        let mut thread = Message::default();
        if let Some(creds) = creds {
            thread.set_bytes(CREDS, creds.as_bytes());
        }
        thread.set_u64(SECCOMP_MODE, 2);
        thread.set_bytes(THREAD_COMM, b"worker");
        let mut entry = Message::default();
        entry.set_bytes(TC, task.as_bytes());
        entry.set_bytes(THREAD_CORE, thread.as_bytes());
        ImageFile::new(Kind::Core, vec![entry])
    }

    fn task(state: u64) -> Message {
        let mut task = Message::default();
        task.set_u64(TASK_STATE, state);
        task
    }

    #[test]
    fn credentials_are_read() {
        let core = Core::from_image(image(&task(1), Some(&creds()))).unwrap();
        assert_eq!((core.comm, core.seccomp_mode), ("worker".into(), 2));
        let creds = core.creds.unwrap();
        assert_eq!((creds.uid, creds.fsgid, creds.groups), (1001, 1008, vec![5, 6]));
        assert_eq!((creds.cap_inh, creds.cap_amb), (1 << 32 | 9, 1 << 32 | 19));
        assert!(creds.no_new_privs);
    }

    #[test]
    fn a_live_thread_without_credentials_is_refused_and_a_zombie_is_not() {
        assert!(Core::from_image(image(&task(1), None)).is_err());
        assert_eq!(Core::from_image(image(&task(2), None)).unwrap().creds, None);
        let bare = ImageFile::new(Kind::Core, vec![Message::default()]);
        assert!(Core::from_image(bare).is_err());
    }

    #[test]
    fn a_seccomp_mode_of_the_older_format_is_refused_because_criu_prefers_it() {
        for tag in [OLD_SECCOMP_MODE, OLD_SECCOMP_FILTER] {
            let mut task = task(1);
            task.set_u64(tag, 0);
            assert!(Core::from_image(image(&task, Some(&creds()))).is_err());
        }
    }

    #[test]
    fn a_third_word_of_capabilities_and_a_second_uid_are_refused() {
        let mut more = creds();
        more.set_u32s(Tag::new(11, "cap_eff"), &[0, 0, 0]);
        assert!(Core::from_image(image(&task(1), Some(&more))).is_err());
        let twice = [creds().as_bytes(), b"\x08\x00"].concat();
        let twice = Message::parse(twice).unwrap();
        assert!(Core::from_image(image(&task(1), Some(&twice))).is_err());
    }
}
