// SPDX-License-Identifier: Apache-2.0
//! containerd's ends of a process's streams.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{OpenOptions, Receiver};

use super::soon;

/// A fifo that containerd made, open for reading as containerd has it.
#[derive(Debug)]
pub(crate) struct Fifo {
    path: PathBuf,
    reader: Option<Receiver>,
    read: Vec<u8>,
}

impl Fifo {
    /// For what a process writes.
    pub(crate) fn output(dir: &Path, name: &str) -> Self {
        let mut fifo = Self::input(dir, name);
        fifo.reader = Some(OpenOptions::new().open_receiver(&fifo.path).unwrap());
        fifo
    }

    /// For what a process reads.
    pub(crate) fn input(dir: &Path, name: &str) -> Self {
        let path = dir.join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        Self { path, reader: None, read: Vec::new() }
    }

    /// As containerd names it to a shim.
    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Reads on until `text` has come.
    pub(crate) async fn expect(&mut self, text: &str) {
        soon(text, async {
            while !String::from_utf8_lossy(&self.read).contains(text) {
                assert!(self.more().await > 0, "the end came before {text:?}");
            }
        })
        .await;
    }

    /// Everything that came and comes, up to the end.
    pub(crate) async fn end(&mut self) -> String {
        soon("the end of a stream", async { while self.more().await > 0 {} }).await;
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }

    async fn more(&mut self) -> usize {
        self.reader.as_mut().unwrap().read_buf(&mut self.read).await.unwrap()
    }

    /// Writes and lets go, as a client does that attaches for one line.
    pub(crate) async fn write(&self, text: &str) {
        let mut writer = OpenOptions::new().open_sender(&self.path).unwrap();
        soon("a write", writer.write_all(text.as_bytes())).await.unwrap();
    }
}
