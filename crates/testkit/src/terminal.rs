//! Programs in the foreground of a pseudoterminal.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    process::{Child, Command, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::Host;

/// A pseudoterminal, and the program that controls it.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    child: Child,
    /// What the terminal has shown since the last text that was waited for.
    shown: String,
}

/// Returns a command whose program does not ignore the terminal's signals. Tests inherit that from a shell that starts them in the
/// background.
pub fn with_default_signals(program: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT,TSTP", program]);
    command
}

impl Host {
    /// Starts a program on this host as the leader of a session with a terminal.
    ///
    /// # Panics
    /// If there is no terminal, or the program cannot be started.
    pub fn terminal(&self, command: &Command) -> Terminal {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("there is a pseudoterminal");
        grantpt(&keyboard).and_then(|()| unlockpt(&keyboard)).expect("it can be opened");
        let path = ptsname(&keyboard, Vec::new()).expect("it has a name").into_string().expect("in ASCII");
        let screen = || Stdio::from(OpenOptions::new().read(true).write(true).open(&path).expect("it opens"));
        let mut session = with_default_signals("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        session.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        session.stdin(screen()).stdout(screen()).stderr(screen());
        let child = self.spawn(&mut session);
        Terminal { keyboard: keyboard.into(), child, shown: String::new() }
    }
}

impl Terminal {
    /// Types a text. `\x03` is ^C, and `\x1a` is ^Z.
    pub fn type_text(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("the terminal is there");
    }

    /// Reads until the terminal shows a text, and returns what it showed up to there.
    ///
    /// # Panics
    /// If the program ends first, or shows something else for a minute.
    pub fn wait_for(&mut self, text: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&self.keyboard, PollFlags::IN)], Some(&limit)).unwrap_or(0);
            // The terminal has no reader's end any more once its last program has ended.
            let length = if ready == 0 { 0 } else { self.keyboard.read(&mut buffer).unwrap_or(0) };
            assert!(length > 0, "the terminal never showed {text:?}, but {:?}", self.shown);
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    /// Changes the size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.keyboard, size).expect("a terminal has a size");
    }

    /// Returns the process ID of the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads until the program has ended, and returns its exit code and what the terminal showed.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.keyboard.read(&mut buffer) {
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        (self.child.wait().expect("it is waited for").code(), self.shown)
    }
}
