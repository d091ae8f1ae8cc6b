// SPDX-License-Identifier: Apache-2.0
//! Copies a file so that zeros take no room: an archive spells out the holes that a file had.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// What is looked at as a whole, bytes; a multiple of every file system's block.
const CHUNK: usize = 1 << 16;

/// Copies all of `source` into the empty file `target`, leaving a hole for each chunk of zeros; how many bytes
/// `source` had.
pub(super) fn copy(source: &mut impl Read, target: &mut File) -> io::Result<u64> {
    let (mut chunk, mut length) = (vec![0; CHUNK], 0u64);
    loop {
        let read = fill(source, &mut chunk)?;
        let Some(data) = chunk.get(..read).filter(|data| !data.is_empty()) else { break };
        length = length.saturating_add(data.len().try_into().unwrap_or(u64::MAX));
        if data.iter().all(|byte| *byte == 0) {
            target.seek(SeekFrom::Start(length))?;
        } else {
            target.write_all(data)?;
        }
    }
    target.set_len(length)?;
    Ok(length)
}

/// Reads until the buffer is full or the source ends.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(read) => filled = filled.saturating_add(read),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_copied_is_the_same_and_zeros_take_no_room() {
        let mut content = vec![0; 20 * CHUNK + 7];
        content[..3].copy_from_slice(b"one");
        content[10 * CHUNK - 1..][..3].copy_from_slice(b"two");
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(copy(&mut content.as_slice(), &mut file).unwrap(), 20 * CHUNK as u64 + 7);
        let mut copied = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut copied).unwrap();
        assert!(copied == content);
        assert!(file.metadata().unwrap().blocks() * 512 <= 4 * CHUNK as u64);
    }

    #[test]
    fn an_empty_file_stays_empty() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(copy(&mut io::empty(), &mut file).unwrap(), 0);
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
}
