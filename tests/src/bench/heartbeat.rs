// SPDX-License-Identifier: Apache-2.0
//! The file that the measured program changes every 2 ms, and watching for its first change.
//!
//! It lies on a tmpfs, so that beats are not counted as bytes written to a disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// What a beat looks like in the file: as many digits, whatever the count.
const STILL: [u8; 20] = [b'0'; 20];
/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(1);
/// How long a program may take to its first beat after it was told to run.
const LIMIT: Duration = Duration::from_secs(120);

/// The heartbeat file; its directory is the pods' hostPath volume.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    dir: PathBuf,
}

impl Heartbeat {
    /// A heartbeat in this directory, which is made.
    pub(crate) fn new(dir: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let heartbeat = Self { dir };
        heartbeat.write()?;
        Ok(heartbeat)
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Watches from now on for the first beat. No program may be beating yet.
    pub(crate) fn watch(&self) -> anyhow::Result<Watch> {
        let before = self.read()?;
        thread::sleep(POLL * 10);
        if self.read()? != before {
            bail!("an earlier program is still running");
        }
        self.write()?;
        let file = File::open(self.path()).context("cannot open the heartbeat file")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || first_beat(&file, &stopped));
        Ok(Watch { stop, thread })
    }

    /// Whether a program has beaten since this was made.
    pub(crate) fn beats(&self) -> anyhow::Result<bool> {
        Ok(self.read()? != STILL)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("count")
    }

    fn read(&self) -> anyhow::Result<Vec<u8>> {
        fs::read(self.path()).context("cannot read the heartbeat file")
    }

    fn write(&self) -> anyhow::Result<()> {
        fs::write(self.path(), STILL).context("cannot write the heartbeat file")
    }
}

/// Watches for a first beat; ends with the value.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<Instant>>,
}

impl Watch {
    /// Waits for the first beat and returns when it was.
    pub(crate) fn beat(self) -> anyhow::Result<Instant> {
        let beat = self.thread.join().ok().flatten();
        beat.with_context(|| format!("the program did not run within {} s", LIMIT.as_secs()))
    }

    /// Gives up.
    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        // It has nothing more to say.
        let _ = self.thread.join();
    }
}

fn first_beat(file: &File, stop: &AtomicBool) -> Option<Instant> {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        let mut now = STILL;
        file.read_exact_at(&mut now, 0).ok()?;
        if now != STILL {
            return Some(Instant::now());
        }
        thread::sleep(POLL);
    }
    None
}
