// SPDX-License-Identifier: Apache-2.0
//! Extended attributes as PAX records: raw as `SCHILY.xattr.NAME`, which every writer of layers uses; and as
//! `LIBARCHIVE.xattr.NAME`, with the name percent-encoded and the value in base64, where readers would misread that: many
//! take the end of a line, or an equals sign, for the end of a record's value or name.
//!
//! Source: star(5); libarchive archive_write_set_format_pax.c.

use std::str::FromStr;

use data_encoding::BASE64_NOPAD;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

const RAW: &str = "SCHILY.xattr.";
const ENCODED: &str = "LIBARCHIVE.xattr.";
/// What of a name is not written as it is.
const ESCAPED: AsciiSet = CONTROLS.add(b'=').add(b'%').add(b' ');

/// The record of an attribute: its key and its value.
pub(super) fn record(name: &str, value: &[u8]) -> (String, Vec<u8>) {
    if value.contains(&b'\n') || name.contains(['=', '\n']) {
        let name = utf8_percent_encode(name, &ESCAPED);
        return (format!("{ENCODED}{name}"), BASE64_NOPAD.encode(value).into_bytes());
    }
    (format!("{RAW}{name}"), value.to_owned())
}

/// The attribute of a record; `None` when it is the record of something else, or cannot be decoded.
pub(super) fn attribute(key: &str, value: &[u8]) -> Option<(String, Vec<u8>)> {
    if let Some(name) = key.strip_prefix(RAW) {
        return Some((name.to_owned(), value.to_owned()));
    }
    let name = percent_decode_str(key.strip_prefix(ENCODED)?).decode_utf8().ok()?;
    let text = std::str::from_utf8(value).ok()?.trim_end_matches('=');
    Some((String::from_str(&name).ok()?, BASE64_NOPAD.decode(text.as_bytes()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_comes_back() {
        for (name, value) in [
            ("user.plain", &b"value"[..]),
            ("user.binary", b"\n\0=\n\n"),
            ("user.a=b", b"x"),
            ("user.with space", b"1 2"),
            ("user.\nline", b""),
            ("user.100%", b"\xff\n"),
        ] {
            let (key, written) = record(name, value);
            assert!(!key.contains('\n') && !written.contains(&b'\n'), "{key}");
            assert_eq!(attribute(&key, &written), Some((name.to_owned(), value.to_owned())));
        }
        assert_eq!(record("user.plain", b"v").0, "SCHILY.xattr.user.plain");
        assert_eq!(attribute("LIBARCHIVE.xattr.user.a", b"YQ=="), Some(("user.a".to_owned(), b"a".to_vec())));
        assert_eq!(attribute("mtime", b"1"), None);
    }
}
