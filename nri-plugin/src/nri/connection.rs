// SPDX-License-Identifier: Apache-2.0
//! How a plugin comes to its socket, and by which name it goes.
//!
//! Either the plugin opens the runtime's socket, or the runtime starts the plugin and hands it one.

use std::env;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::net::UnixStream;

/// Where runtimes listen for plugins. Source: containerd/nri pkg/api/plugin.go, as are the variables below.
pub const SOCKET: &str = "/var/run/nri/nri.sock";
const ENV_SOCKET: &str = "NRI_PLUGIN_SOCKET";
const ENV_NAME: &str = "NRI_PLUGIN_NAME";
const ENV_INDEX: &str = "NRI_PLUGIN_IDX";

/// A plugin's name and its place in the order of plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    name: String,
    index: String,
}

/// A runtime would not accept this name or index.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The name.
    #[error("{0:?} is not a plugin's name: letters, digits and _ . + - only")]
    Name(String),
    /// The index.
    #[error("{0:?} is not a plugin's index: write two digits")]
    Index(String),
}

impl Identity {
    /// A name of letters, digits and `_.+-`, and two digits; plugins are called in ascending order of these.
    ///
    /// # Errors
    /// The runtime would refuse them.
    pub fn new(name: &str, index: &str) -> Result<Self, IdentityError> {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.+-".contains(&b)) {
            return Err(IdentityError::Name(name.to_owned()));
        }
        if index.len() != 2 || !index.bytes().all(|b| b.is_ascii_digit()) {
            return Err(IdentityError::Index(index.to_owned()));
        }
        Ok(Self { name: name.to_owned(), index: index.to_owned() })
    }

    /// The name alone.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The two digits.
    #[must_use]
    pub fn index(&self) -> &str {
        &self.index
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}

/// The runtime's socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {path}", path = path.display())]
pub struct ConnectError {
    path: PathBuf,
    source: io::Error,
}

/// Opens the runtime's socket, usually [`SOCKET`].
///
/// # Errors
/// No runtime listens there, or not for this user.
pub async fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path).await.map_err(|source| ConnectError { path: path.to_owned(), source })
}

/// A runtime started this process as its plugin, and made a mistake.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The variable does not hold the number of a descriptor.
    #[error("{ENV_SOCKET}={0:?} is not the number of a descriptor")]
    Number(String),
    /// The descriptor is not a connected unix socket, or the kernel is older than 5.6.
    #[error("descriptor {number} of {ENV_SOCKET} cannot be used as a socket")]
    Socket {
        /// The descriptor.
        number: i32,
        /// Why.
        source: io::Error,
    },
    /// The name or the index that the runtime gave.
    #[error("{ENV_NAME} or {ENV_INDEX} is not right")]
    Identity(#[source] IdentityError),
}

/// The socket and the identity that the runtime gave to this process; `None` where no runtime started it.
///
/// The socket stays open until the process ends, for the descriptor that was inherited does.
///
/// # Errors
/// The environment is not what the protocol says.
pub fn launched() -> Result<Option<(UnixStream, Identity)>, LaunchError> {
    let Some(value) = env::var_os(ENV_SOCKET) else { return Ok(None) };
    let number = descriptor(&value.to_string_lossy())?;
    let stream = inherited(number).map_err(|source| LaunchError::Socket { number, source })?;
    let var = |name| env::var(name).unwrap_or_default();
    let identity = Identity::new(&var(ENV_NAME), &var(ENV_INDEX)).map_err(LaunchError::Identity)?;
    Ok(Some((stream, identity)))
}

fn descriptor(value: &str) -> Result<i32, LaunchError> {
    value.parse().ok().filter(|number| *number >= 0).ok_or_else(|| LaunchError::Number(value.to_owned()))
}

/// A copy of an inherited socket. To own the descriptor itself would take unsafe code; the kernel checks this number.
fn inherited(number: i32) -> io::Result<UnixStream> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let stream = StdUnixStream::from(pidfd_getfd(this, number, PidfdGetfdFlags::empty())?);
    // Fails for anything but a connected unix socket.
    stream.peer_addr()?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn only_names_and_indices_that_runtimes_accept() {
        assert_eq!(Identity::new("thaw", "10").unwrap().to_string(), "10-thaw");
        assert!(Identity::new("A.b_c+d-9", "00").is_ok());
        for name in ["", "a b", "a/b", "ä"] {
            assert_eq!(Identity::new(name, "10"), Err(IdentityError::Name(name.into())));
        }
        for index in ["", "1", "100", "1a", "-1", "٣"] {
            assert_eq!(Identity::new("thaw", index), Err(IdentityError::Index(index.into())));
        }
    }

    #[tokio::test]
    async fn an_inherited_socket_carries_bytes_and_other_descriptors_are_refused() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let mut inherited_stream = inherited(theirs.as_raw_fd()).unwrap();
        inherited_stream.write_all(b"x").await.unwrap();
        ours.set_nonblocking(true).unwrap();
        assert_eq!(UnixStream::from_std(ours).unwrap().read_u8().await.unwrap(), b'x');

        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(inherited(file.as_raw_fd()).is_err());
        for value in ["-1", "", "x", "3x", "99999999999"] {
            assert!(descriptor(value).is_err(), "{value}");
        }
    }
}
