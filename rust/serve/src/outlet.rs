//! Where the engine's threads send: the socket of a connection, past the event loop.

use std::io::{ErrorKind, Result, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Takes the bytes of a streamed reply without blocking.
pub trait Outlet: Sync {
    /// Sends some of `bytes`; 0: it takes none now.
    ///
    /// # Errors
    /// It will never take any more.
    fn send(&self, bytes: &[u8]) -> Result<usize>;

    /// Waits until it takes more, or has failed; false when it does not in time.
    fn wait(&self, milliseconds: i32) -> bool;
}

/// A descriptor of its own for a socket that an event loop reads, and writes at other times: the
/// loop may close its own at any time. Does not block.
pub struct Socket {
    /// Of a TCP socket too: what is done to it here is the same for both.
    socket: UnixStream,
}

impl Socket {
    /// A duplicate of an open descriptor of a non-blocking, connected socket.
    ///
    /// # Errors
    /// There is none under that number.
    pub fn duplicate(descriptor: RawFd) -> Result<Self> {
        if descriptor < 0 {
            return Err(std::io::Error::new(ErrorKind::InvalidInput, "give an open descriptor"));
        }
        // SAFETY: the number is only duplicated, which fails if nothing is open under it.
        #[allow(unsafe_code, reason = "owners of event loops have descriptors as numbers")]
        let theirs = unsafe { BorrowedFd::borrow_raw(descriptor) };
        Ok(Self { socket: theirs.try_clone_to_owned()?.into() })
    }

    /// Ends both directions: a send that waits fails.
    pub fn shutdown(&self) {
        // A socket that is not connected any more is as good as shut down.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Outlet for Socket {
    fn send(&self, bytes: &[u8]) -> Result<usize> {
        loop {
            match (&self.socket).write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                sent => return sent,
            }
        }
    }

    fn wait(&self, milliseconds: i32) -> bool {
        let fd = self.socket.as_raw_fd();
        let mut wanted = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid pollfd, whose descriptor is open as long as self lives.
        #[allow(unsafe_code, reason = "the standard library waits for no descriptor")]
        let ready = unsafe { libc::poll(&raw mut wanted, 1, milliseconds) };
        ready != 0
    }
}
