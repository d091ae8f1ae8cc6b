// SPDX-License-Identifier: Apache-2.0
//! Reads what may be compressed, by its first bytes and not by its name.

use std::io::{self, BufReader, Cursor, Read};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// As many bytes as the longest of the marks has.
const MARK_BYTES: u64 = 4;
/// How much is read at a time, in bytes.
const BUFFER_BYTES: usize = 128 * 1024;

impl Compression {
    /// Says how a stream that begins so is compressed. Source: RFC 1952, RFC 8878.
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// The content of a stream, whatever its compression.
///
/// # Errors
/// When its beginning cannot be read.
pub(crate) fn decompressed<'a>(mut stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::new();
    (&mut stream).take(MARK_BYTES).read_to_end(&mut start)?;
    let compression = Compression::of(&start);
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(start).chain(stream));
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(whole)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decompressed(bytes)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn every_compression_gives_the_same_content() {
        let content = b"the same content".repeat(10_000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&content).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&content[..], 1).unwrap();
        assert_eq!(read(&content).unwrap(), content);
        assert_eq!(read(&gzip).unwrap(), content);
        assert_eq!(read(&zstd).unwrap(), content);
        assert!(read(&gzip[..gzip.len() - 20]).is_err());
        assert!(read(&zstd[..zstd.len() - 20]).is_err());
        assert_eq!(read(b"").unwrap(), b"");
    }
}
