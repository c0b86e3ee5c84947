//! The playground itself: machines without daemons.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use unum_tests::{Census, Playground, cannot_run, text, unum};

const BARE: [&str; 3] = ["--bare", "--nodes", "3"];

/// Leaves a server on a machine that answers every connection on port 9000.
fn serve(playground: &Playground, machine: &str) {
    let server = "import socket\n\
        s = socket.create_server(('', 9000))\n\
        open('/run/listening', 'w').close()\n\
        while True: s.accept()[0].sendall(b'hello')";
    let mut command = playground.on(machine, &["setsid", "--fork", "python3", "-c", server]);
    let status = command.status().expect("unum runs");
    assert!(status.success());
    let waited = playground.sh(
        machine,
        "for i in $(seq 500); do [ -e /run/listening ] && exit 0; sleep 0.01; done; exit 1",
    );
    assert!(waited.status.success(), "the server on {machine} does not listen");
}

/// "hello", or the name of the error that a connection from one machine to another ends in.
fn ask(playground: &Playground, from: &str, to: &str) -> String {
    let client = format!(
        "import socket\n\
        try: print(socket.create_connection(('{to}', 9000), 0.5).recv(9).decode())\n\
        except Exception as error: print(type(error).__name__)"
    );
    let output = playground.on(from, &["python3", "-c", &client]).output().expect("unum runs");
    text(&output.stdout).trim().to_string()
}

#[test]
fn down_leaves_nothing_behind() {
    if cannot_run() {
        return;
    }
    let playground = Playground::up(&["--bare", "--nodes", "2", "--cpus", "0.5"]);
    let name = playground.name().to_string();
    let during = Census::of(&name);
    assert!(during.processes.len() >= 2, "the census must see what is there: {during:?}");
    assert!(!during.namespaces.is_empty() && !during.directories.is_empty());
    let interfaces = during.interfaces.clone();
    // Something that would like to stay.
    playground.sh("n1", "nohup setsid sleep 1000 >/dev/null 2>&1 &");
    drop(playground);
    assert_eq!(Census::of(&name), Census { interfaces, ..Census::default() });
}

#[test]
fn down_twice_and_without_a_playground_is_fine() {
    if cannot_run() {
        return;
    }
    let playground = Playground::up(&["--bare", "--nodes", "1"]);
    playground.must("down", &[]);
    playground.must("down", &[]);
}

#[test]
fn down_cleans_up_after_an_up_that_was_killed() {
    if cannot_run() {
        return;
    }
    // Killed at ever later moments of its work.
    for pause_ms in [1, 3, 6, 12, 25, 50] {
        let name = format!("killed-{}-{pause_ms}", std::process::id());
        let up = ["dev", "--name", &name, "up", "--bare", "--nodes", "3"];
        let mut child = Command::new(unum()).args(up).spawn().expect("unum runs");
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        child.kill().expect("it can be killed");
        child.wait().expect("it can be reaped");
        let down = Command::new(unum()).args(["dev", "--name", &name, "down"]).status();
        assert!(down.expect("unum runs").success());
        let interfaces = Census::of(&name).interfaces;
        assert_eq!(Census::of(&name), Census { interfaces, ..Census::default() });
    }
}

#[test]
fn a_machine_has_its_own_name_processes_and_temporary_files() {
    if cannot_run() {
        return;
    }
    let playground = Playground::up(&BARE);
    // Not the whole of /tmp is listed: if the programs lie in it, a machine sees them.
    let computers = tempfile::NamedTempFile::new_in("/tmp").expect("a file");
    let looked_for = format!("ls {} /tmp/mine 2>/dev/null", computers.path().display());
    let look = format!("hostname; cat /proc/1/comm; {looked_for}");
    let machine = |name| text(&playground.sh(name, &look).stdout);
    playground.sh("n1", "touch /tmp/mine");
    assert_eq!(machine("n1"), "n1\nunum\n/tmp/mine\n");
    assert_eq!(machine("n2"), "n2\nunum\n");
}

#[test]
fn exec_hands_on_input_output_user_and_exit_status() {
    if cannot_run() {
        return;
    }
    let playground = Playground::up(&["--bare", "--nodes", "1"]);
    let status = |script: &str| playground.sh("n1", script).status.code();
    assert_eq!(status("exit 7"), Some(7));
    assert_eq!(status("kill -9 $$"), Some(137));
    let missing = playground.on("n1", &["no-such-program"]).output().expect("unum runs");
    assert_eq!(missing.status.code(), Some(127));
    let denied = playground.on("n1", &["/etc/passwd"]).output().expect("unum runs");
    assert_eq!(denied.status.code(), Some(126));
    let who = playground.must("exec", &["n1", "--user", "nobody", "--", "id", "-un"]);
    assert_eq!(who, "nobody\n");
    let unknown = playground.dev("exec", &["n9", "--", "true"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("there is no machine n9"));
}

#[test]
fn a_power_cut_ends_everything_and_keeps_the_disk() {
    if cannot_run() {
        return;
    }
    let playground = Playground::up(&BARE);
    playground.sh("n2", "echo kept > /var/lib/unum/file; touch /run/lost /tmp/lost");
    serve(&playground, "n2");
    assert_eq!(ask(&playground, "n1", "n2"), "hello");
    let mut sleeper = playground.on("n2", &["sleep", "1000"]).spawn().expect("unum runs");
    playground.must("cut", &["n2"]);
    assert_eq!(sleeper.wait().expect("it ends").code(), Some(137));
    // No reset and no "no route": just silence.
    assert_eq!(ask(&playground, "n1", "n2"), "TimeoutError");
    assert_eq!(playground.sh("n2", "true").status.code(), Some(125));
    playground.must("boot", &["n2"]);
    let look = "cat /var/lib/unum/file; ls /tmp/lost /run/lost 2>/dev/null";
    let found = playground.sh("n2", look);
    assert_eq!(text(&found.stdout), "kept\n");
    serve(&playground, "n2");
    assert_eq!(ask(&playground, "n1", "n2"), "hello");
}

#[test]
fn a_power_cut_leaves_the_mounts_of_the_computer_alone() {
    if cannot_run() || !Path::new("/dev/fuse").exists() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let device = File::options().read(true).write(true).open("/dev/fuse").expect("FUSE is there");
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = CString::new(options).expect("no zeros");
    mount("test", place.path(), "fuse", MountFlags::empty(), options.as_c_str()).expect("a mount");
    // Machines see the computer's mounts, also those that their own lie over.
    let playground = Playground::up(&["--bare", "--nodes", "1"]);
    playground.must("cut", &["n1"]);
    let mut asked = [PollFd::new(&device, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).expect("it can be asked");
    let alive = !asked[0].revents().contains(PollFlags::ERR);
    drop(playground);
    unmount(place.path(), UnmountFlags::DETACH).expect("it is mounted");
    assert!(alive, "the connection was aborted");
}

#[test]
fn a_partition_parts_and_heals() {
    if cannot_run() {
        return;
    }
    let playground = Playground::up(&BARE);
    for machine in ["n1", "n2", "n3"] {
        serve(&playground, machine);
    }
    let all = |pairs: [(&str, &str); 4]| pairs.map(|(from, to)| ask(&playground, from, to));
    let pairs = [("n1", "n2"), ("n2", "n1"), ("n1", "n3"), ("n3", "n2")];
    assert_eq!(all(pairs), ["hello"; 4]);
    playground.must("partition", &["n1", "n2", "--", "n3"]);
    assert_eq!(all(pairs), ["hello", "hello", "TimeoutError", "TimeoutError"]);
    // A machine that comes back is still on its side.
    playground.must("cut", &["n3"]);
    playground.must("boot", &["n3"]);
    assert_eq!(ask(&playground, "n3", "n1"), "TimeoutError");
    serve(&playground, "n3");
    playground.must("heal", &[]);
    assert_eq!(all(pairs), ["hello"; 4]);
}

#[test]
fn two_playgrounds_do_not_meet() {
    if cannot_run() {
        return;
    }
    let one = Playground::up(&["--bare", "--nodes", "2"]);
    let other = Playground::up(&["--bare", "--nodes", "1"]);
    serve(&one, "n2");
    assert_eq!(ask(&one, "n1", "n2"), "hello");
    assert_eq!(ask(&other, "n1", "10.117.0.2"), "TimeoutError");
}
