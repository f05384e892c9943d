//! A command at a terminal, with a person's fingers on it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::output::Output;
use crate::wait::eventually;

/// A command that runs at a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    command: String,
    child: Child,
    master: std::fs::File,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts `program arguments…` as the leader of a session whose terminal has 24 rows of 80 columns. `start` spawns what it is
    /// given, in the place and with the environment that the caller wants.
    ///
    /// # Panics
    /// When there is no terminal to be had, or the program cannot be started.
    #[track_caller]
    pub fn start(program: &str, arguments: &[&str], start: impl FnOnce(&mut Command) -> Child) -> Self {
        let pty = nix::pty::openpty(None, None).expect("a terminal can be opened");
        let size = rustix::termios::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&pty.master, size).expect("a terminal has a size");
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a descriptor can be copied"));
        // setsid makes its standard input the controlling terminal: without that, no key would become a signal.
        let mut command = Command::new("setsid");
        command.args(["--ctty", program]).args(arguments);
        command.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
        let child = start(&mut command);
        drop(command);
        drop(pty.slave);
        let master = std::fs::File::from(pty.master);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut reader, shared) = (master.try_clone().expect("a descriptor can be copied"), screen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading from a terminal that nobody has open any more is an error (EIO).
            while let Ok(n) = reader.read(&mut bytes) {
                if n == 0 {
                    break;
                }
                shared.lock().expect("nobody panics with the screen").push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        let command = format!("{program} {}", arguments.join(" "));
        Self { command, child, master, screen }
    }

    /// All that was shown so far.
    ///
    /// # Panics
    /// Never: the reader does not panic.
    #[must_use]
    pub fn screen(&self) -> String {
        self.screen.lock().expect("nobody panics with the screen").clone()
    }

    /// Types text; `\r` is the enter key, `\u{3}` Ctrl-C.
    ///
    /// # Panics
    /// When the terminal is gone.
    #[track_caller]
    pub fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal takes what is typed");
    }

    /// Waits until the terminal has shown this.
    #[track_caller]
    pub fn shows(&self, text: &str, deadline: Duration) {
        eventually(deadline, &format!("`{}` shows {text:?}", self.command), || {
            let screen = self.screen();
            if screen.contains(text) { Ok(()) } else { Err(screen) }
        });
    }

    /// Makes the window another size.
    ///
    /// # Panics
    /// When the terminal is gone.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.master.as_fd(), size).expect("a terminal has a size");
    }

    /// Waits for the command to end; all that was shown is its standard output.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn ends(mut self, deadline: Duration) -> Output {
        let what = format!("`{}` ends", self.command);
        let status = eventually(deadline, &what, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(format!("it runs; its screen:\n{}", self.screen())),
            Err(e) => Err(e.to_string()),
        });
        let output = std::process::Output { status, stdout: self.screen().into_bytes(), stderr: Vec::new() };
        Output::new(self.command.clone(), &output)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
