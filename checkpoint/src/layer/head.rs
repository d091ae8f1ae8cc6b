// SPDX-License-Identifier: Apache-2.0
//! A limit for the headers of a tar: one may claim to be of any length, and is read into memory as a whole.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

/// How much may be read until the next entry is there. Its headers, and what nobody has read of the file before.
#[derive(Debug, Clone, Default)]
pub struct HeadLimit(Rc<Count>);

#[derive(Debug, Default)]
struct Count {
    /// While an entry is looked for: how much is left of the limit.
    left: Cell<Option<u64>>,
    /// What is to be read of the current entry's file still.
    body: Cell<u64>,
}

impl HeadLimit {
    /// The longest headers of one entry, with its name, its link and its attributes, bytes.
    pub const MAX: u64 = 4 << 20;

    /// The stream that the tar is read from.
    pub fn of<S>(&self, stream: S) -> Limited<S> {
        Limited { stream, limit: self.clone() }
    }

    /// Does what looks for the next entry.
    pub fn within<T>(&self, next: impl FnOnce() -> T) -> T {
        self.0.left.set(Some(Self::MAX.saturating_add(self.0.body.take())));
        let entry = next();
        self.0.left.set(None);
        entry
    }

    /// The entry that was found has this many bytes in the tar.
    pub fn body(&self, bytes: u64) {
        self.0.body.set(bytes);
    }

    fn count(&self, bytes: u64) -> io::Result<()> {
        let Some(left) = self.0.left.get() else {
            self.0.body.set(self.0.body.get().saturating_sub(bytes));
            return Ok(());
        };
        let text = || format!("a header in it is longer than {} bytes", Self::MAX);
        let left =
            left.checked_sub(bytes).ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, text()))?;
        self.0.left.set(Some(left));
        Ok(())
    }
}

/// A stream of which headers may not be too long.
#[derive(Debug)]
pub struct Limited<S> {
    stream: S,
    limit: HeadLimit,
}

impl<S> Limited<S> {
    /// The stream.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: Read> Read for Limited<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.limit.count(u64::try_from(read).unwrap_or(u64::MAX))?;
        Ok(read)
    }
}

impl<S: Seek> Seek for Limited<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        // Who seeks does not read the rest of a file.
        let at = self.stream.seek(to)?;
        if let Some(left) = self.limit.0.left.get() {
            self.limit.0.left.set(Some(left.min(HeadLimit::MAX)));
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of a tar's entries, of whose files `read` bytes are read.
    fn names(tar: impl Read, read: u64) -> io::Result<Vec<String>> {
        let limit = HeadLimit::default();
        let mut archive = tar::Archive::new(limit.of(tar));
        let (mut entries, mut names) = (archive.entries()?, Vec::new());
        while let Some(entry) = limit.within(|| entries.next()) {
            let mut entry = entry?;
            limit.body(entry.header().entry_size()?);
            names.push(entry.path()?.display().to_string());
            io::copy(&mut (&mut entry).take(read), &mut io::sink())?;
        }
        Ok(names)
    }

    fn header(kind: tar::EntryType, bytes: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes);
        header.set_path("x").unwrap();
        header.set_cksum();
        header
    }

    #[test]
    fn files_may_be_of_any_length_read_or_not_and_headers_may_not() {
        let mut tar = tar::Builder::new(Vec::new());
        let long = 3 * HeadLimit::MAX;
        tar.append_data(&mut header(tar::EntryType::Regular, long), "big", io::repeat(1).take(long)).unwrap();
        tar.append_data(&mut header(tar::EntryType::Regular, 0), "l".repeat(300), io::empty()).unwrap();
        let good = tar.into_inner().unwrap();
        let mut bad = good[..good.len() - 1024].to_owned();
        bad.extend(header(tar::EntryType::GNULongName, 100 << 30).as_bytes());
        for read in [0, 5, long] {
            assert_eq!(names(good.as_slice(), read).unwrap().len(), 2);
            let error = names(bad.as_slice().chain(io::repeat(b'a')), read).unwrap_err();
            assert!(error.to_string().contains("a header in it is longer"), "{error}");
        }
    }
}
