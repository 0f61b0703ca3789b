//! Signals to `netloom run`: from the terminal, from other processes, and during its clean-up.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use testkit::{Host, with_default_signals};

use crate::lab::{NETLOOM, OURS};

/// A `netloom run` whose command has started. The command prints `ready` first, and should end with its standard input.
pub(crate) struct Running {
    pub(crate) child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn new(host: &Host, options: &[&str], command: &str) -> Self {
        // In a session of its own: the terminal of whoever runs the tests is not the command's.
        let mut netloom = with_default_signals("setsid");
        netloom.args([NETLOOM, "run"]).args(options).args([
            "--",
            "bash",
            "-c",
            &format!("echo ready; {command}"),
        ]);
        netloom.env("CNI_PATH", &*OURS).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = host.spawn(&mut netloom);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut running = Self { child, stdout };
        let line = running.line();
        assert_eq!(line, "ready\n", "{}", running.end().1);
        running
    }

    /// Reads a line of the command's output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Returns the name of the command's namespace.
    pub(crate) fn netns(&self) -> String {
        format!("netloom-run-{}", self.child.id())
    }

    /// Closes the command's input and waits. Returns the exit code, and what was written to standard error.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        drop(self.child.stdin.take());
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap().code(), stderr)
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

/// Each signal reaches the command as it is, also those that a terminal could have sent.
#[test]
fn signals_are_forwarded_as_they_are() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let signals = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("TERM", Signal::TERM),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("WINCH", Signal::WINCH),
        ("TSTP", Signal::TSTP),
        // Alone it may be the shell's, which continues the whole group, and come too late.
        ("CONT", Signal::CONT),
    ];
    let traps = signals.map(|(name, _)| format!("trap 'echo {name}' {name}; ")).concat();
    let mut run = Running::new(
        &host,
        &[],
        &format!("{traps} echo trapped; while :; do read -t 0.01 x; [ $? = 1 ] && exit 7; done"),
    );
    assert_eq!(run.line(), "trapped\n");
    for (name, signal) in signals {
        run.signal(signal);
        assert_eq!(run.line(), format!("{name}\n"));
    }
    assert_eq!(run.end().0, Some(7));
}

/// A command that a signal ends gives the exit code of a shell, and nothing is left.
#[test]
fn exit_codes_of_signals() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    for (signal, number) in [(Signal::HUP, 1), (Signal::INT, 2), (Signal::TERM, 15), (Signal::USR1, 10)] {
        let run = Running::new(&host, &["-p", "8080:80"], "exec sleep infinity");
        run.signal(signal);
        let (code, stderr) = run.end();
        assert_eq!(code, Some(128 + number), "{stderr}");
        assert_eq!(
            host.sh("ls /run/netns /var/lib/cni/results /var/lib/cni/netloom/run")
                .matches("netloom-")
                .count(),
            0
        );
    }
}

/// `nohup netloom run` and its command survive the end of the terminal.
#[test]
fn ignored_signals_stay_ignored() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let script = format!("trap '' HUP; {NETLOOM} run -- sh -c 'kill -HUP $PPID; kill -HUP $$; echo alive'");
    assert_eq!(host.sh(&script), "alive\n");
}

/// ^C and a change of the size reach the command once, from the terminal.
#[test]
fn a_terminal_sends_its_signals_once() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let script = "n=0; trap 'n=$((n+1)); echo INT $n' INT; trap 'echo size $(stty size)' WINCH; echo ready; \
                  while :; do read -t 0.05 line; [ \"$line\" = end ] && echo total $n && exit 3; done";
    let mut command = Command::new(NETLOOM);
    command.args(["run", "--", "bash", "-c", script]);
    let mut terminal = host.terminal(&command);
    terminal.wait_for("ready\r\n");
    terminal.type_text("\x03");
    terminal.wait_for("INT 1\r\n");
    terminal.resize(33, 77);
    let shown = terminal.wait_for("size 33 77\r\n");
    assert!(!shown.contains("INT 2"), "{shown}");
    // A signal of another process is forwarded, in order, so that a second one of the terminal would have come before it.
    kill_process(Pid::from_raw(terminal.pid().cast_signed()).unwrap(), Signal::INT).unwrap();
    let shown = terminal.wait_for("INT 2\r\n");
    assert!(!shown.contains("size"), "{shown}");
    terminal.type_text("end\n");
    terminal.wait_for("total 2\r\n");
    assert_eq!(terminal.end().0, Some(3));
}

/// A terminal's signals are not forwarded: a command that has left the terminal's session gets only those of other processes.
#[test]
fn the_terminals_signals_are_not_forwarded() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let traps =
        ["INT", "WINCH", "USR1", "USR2"].map(|name| format!("trap 'echo got {name}' {name}; ")).concat();
    let script = format!("{traps} echo ready; while :; do sleep 0.01; done");
    let mut command = Command::new(NETLOOM);
    command.args(["run", "--", "setsid", "bash", "-c", &script]);
    let mut terminal = host.terminal(&command);
    terminal.wait_for("ready\r\n");
    terminal.type_text("\x03");
    let mut shown = terminal.wait_for("^C");
    terminal.resize(33, 77);
    // The order of signals that arrive together is that of their numbers, so after both of these the others would be there.
    let pid = Pid::from_raw(terminal.pid().cast_signed()).unwrap();
    for (signal, text) in [(Signal::USR1, "got USR1"), (Signal::USR2, "got USR2")] {
        kill_process(pid, signal).unwrap();
        shown += &terminal.wait_for(text);
    }
    assert!(!shown.contains("got INT") && !shown.contains("got WINCH"), "{shown}");
    kill_process(pid, Signal::HUP).unwrap();
    assert_eq!(terminal.end().0, Some(129));
}

/// ^Z stops command and program as one job, and `fg` goes on with both.
#[test]
fn a_shell_controls_the_job() {
    if !testkit::is_root() || !testkit::has("bash") {
        return;
    }
    let host = Host::new();
    let mut shell = Command::new("bash");
    shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "> ").env("TERM", "dumb");
    let mut terminal = host.terminal(&shell);
    terminal.type_text(&format!(
        "{NETLOOM} run -- sh -c 'echo rea\"\"dy; while read -r line; do echo got $line; done'\n"
    ));
    terminal.wait_for("ready\r\n");
    for _ in 0..2 {
        terminal.type_text("\x1a");
        // The shell prints the job's command line here too. What is typed before `fg` has
        // started is the shell's own input.
        terminal.wait_for("Stopped");
        terminal.wait_for("\r\n> ");
        terminal.type_text("fg\n");
        terminal.wait_for("fg\r\n");
        terminal.wait_for("run -- sh");
        terminal.type_text("hello\n");
        terminal.wait_for("got hello\r\n");
    }
    terminal.type_text("\x03");
    terminal.wait_for("> ");
    terminal.type_text("echo code $?\n");
    terminal.wait_for("code 130\r\n");
    terminal.type_text("exit\n");
    terminal.end();
}

/// Neither ^C nor a signal skips the clean-up. Both come while the plugin's DEL waits.
#[test]
fn clean_up_is_not_interrupted() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir -p /run/bin; mkfifo /run/deleting /run/go-on; touch /run/made");
    let script = "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in
        ADD) echo '{\"cniVersion\": \"1.0.0\"}';;
        DEL) echo now >/run/deleting; cat /run/go-on; rm /run/made;; esac\n";
    fs::write(host.path("/run/bin/slow"), script).unwrap();
    fs::set_permissions(host.path("/run/bin/slow"), fs::Permissions::from_mode(0o755)).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "slow", "plugins": [{"type": "slow"}]});
    fs::write(host.path("/run/slow.conflist"), list.to_string()).unwrap();
    let mut command = Command::new(NETLOOM);
    command.args(["--bin-path", "/run/bin", "run", "--config", "/run/slow.conflist", "--"]);
    command.args(["sh", "-c", "echo ready; exec sleep infinity"]);
    let mut terminal = host.terminal(&command);
    terminal.wait_for("ready\r\n");
    terminal.type_text("\x03");
    assert_eq!(host.sh("cat /run/deleting"), "now\n");
    terminal.wait_for("^C");
    terminal.type_text("\x03");
    terminal.wait_for("^C");
    let pid = Pid::from_raw(terminal.pid().cast_signed()).unwrap();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        kill_process(pid, signal).unwrap();
    }
    host.sh("echo >/run/go-on");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(130), "{shown}");
    assert!(!host.path("/run/made").exists(), "{shown}");
    assert_eq!(host.sh("ls /run/netns"), "");
}

/// A signal during the ADD ends the run before the command starts, with the exit code of the signal.
#[test]
fn a_signal_comes_before_the_command() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir -p /run/bin; mkfifo /run/adding /run/go-on");
    let script = "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in
        ADD) echo now >/run/adding; cat /run/go-on; echo '{\"cniVersion\": \"1.0.0\"}';;
        DEL) touch /run/deleted;; esac\n";
    fs::write(host.path("/run/bin/slow"), script).unwrap();
    fs::set_permissions(host.path("/run/bin/slow"), fs::Permissions::from_mode(0o755)).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "slow", "plugins": [{"type": "slow"}]});
    fs::write(host.path("/run/slow.conflist"), list.to_string()).unwrap();
    let mut command = Command::new(NETLOOM);
    command.args([
        "--bin-path",
        "/run/bin",
        "run",
        "--config",
        "/run/slow.conflist",
        "touch",
        "/run/started",
    ]);
    let mut terminal = host.terminal(&command);
    assert_eq!(host.sh("cat /run/adding"), "now\n");
    terminal.type_text("\x03");
    terminal.wait_for("^C");
    host.sh("echo >/run/go-on");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(130), "{shown}");
    assert!(host.path("/run/deleted").exists() && !host.path("/run/started").exists(), "{shown}");
}

/// A signal ends `netloom demo` after its clean-up.
#[test]
fn the_demo_cleans_up_after_a_signal() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let mut demo =
        host.spawn(with_default_signals(NETLOOM).arg("demo").stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ADD a")));
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    let shown: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(shown.last().unwrap().contains("unchanged"), "{shown:?}");
    assert_eq!(demo.wait().unwrap().code(), Some(130), "{shown:?}");
    assert_eq!(
        host.sh("ls /run/netns /var/lib/cni/results; ip -br link | grep veth || true"),
        "/run/netns:\n\n/var/lib/cni/results:\n"
    );
}
