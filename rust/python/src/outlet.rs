//! Where the engine's threads send: the socket of a connection, past the event loop.

use std::io::{ErrorKind, Result, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use pyo3::prelude::*;

/// A descriptor of its own for a socket that an event loop reads, and writes at other times: the
/// loop may close its own at any time. Does not block.
#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct Outlet {
    /// Of a TCP socket too: what is done to it here is the same for both.
    socket: UnixStream,
}

impl Outlet {
    /// Sends some of `bytes`; 0: the socket takes none now.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<usize> {
        loop {
            match (&self.socket).write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                sent => return sent,
            }
        }
    }

    /// Waits until the socket takes more, or has failed; false when it does not in time.
    pub(crate) fn wait(&self, milliseconds: i32) -> bool {
        let fd = self.socket.as_raw_fd();
        let mut wanted = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid pollfd, whose descriptor is open as long as self lives.
        #[allow(unsafe_code, reason = "the standard library waits for no descriptor")]
        let ready = unsafe { libc::poll(&raw mut wanted, 1, milliseconds) };
        ready != 0
    }
}

#[pymethods]
impl Outlet {
    #[new]
    #[pyo3(signature = (descriptor, /))]
    fn new(descriptor: i32) -> PyResult<Self> {
        if descriptor < 0 {
            return Err(pyo3::exceptions::PyValueError::new_err("give an open descriptor"));
        }
        // SAFETY: the number is only duplicated, which fails if nothing is open under it.
        #[allow(unsafe_code, reason = "Python has descriptors as numbers")]
        let theirs = unsafe { BorrowedFd::borrow_raw(descriptor) };
        Ok(Self { socket: theirs.try_clone_to_owned()?.into() })
    }

    fn fileno(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    fn shutdown(&self) {
        // A socket that is not connected any more is as good as shut down.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
