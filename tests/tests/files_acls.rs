//! POSIX access control lists on `/unum`: kept as every file system of Linux keeps them, obeyed on all
//! machines from the moment on that they are set.

use unum_tests::actor::{Actor, actors, cannot_run_files};
use unum_tests::{Playground, text};

/// Users that no machine knows by name.
const ANNA: u32 = 61_001;
const BERT: u32 = 61_002;
const GROUP: u32 = 62_001;

fn cannot_run_acls() -> bool {
    if cannot_run_files() {
        return true;
    }
    let found = ["setfacl", "getfacl"].map(|tool| {
        std::process::Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success())
    });
    if found != [true; 2] {
        println!("skipped: there is no setfacl (Debian package acl)");
    }
    found != [true; 2]
}

/// What happens when a user reads and writes a file.
fn tries(actor: &mut Actor, uid: u32, groups: &str, path: &str, answers: [&str; 2]) {
    let [read, write] = answers;
    let open = |flags: &str| {
        format!("as_user({uid}, lambda: os.close(os.open('{path}', {flags})), groups={groups})")
    };
    actor.expect(&open("os.O_RDONLY"), read);
    actor.expect(&open("os.O_WRONLY"), write);
}

#[test]
fn lists_are_obeyed_on_all_machines_at_once() {
    if cannot_run_acls() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b, mut c] = actors(&playground, ["n1", "n2", "n3"]);
    let set = |machine: &str, list: &str| playground.does(machine, &format!("setfacl {list}"));
    a.run(&[
        "write('/unum/f', b'secret')",
        "os.chmod('/unum/f', 0o600)",
        "os.mkdir('/unum/d', 0o700)",
    ]);
    a.run(&["write('/unum/d/below', b'')", "os.chmod('/unum/d/below', 0o644)"]);
    for actor in [&mut b, &mut c] {
        actor.run(&["f = os.open('/unum/f', os.O_RDONLY)"]);
    }
    for round in 0..2 {
        tries(&mut b, ANNA, "[]", "/unum/f", ["EACCES", "EACCES"]);
        set("n1", &format!("-m u:{ANNA}:r,g:{GROUP}:rw /unum/f"));
        for actor in [&mut a, &mut b, &mut c] {
            tries(actor, ANNA, "[]", "/unum/f", ["ok", "EACCES"]);
            tries(actor, BERT, "[]", "/unum/f", ["EACCES", "EACCES"]);
            tries(actor, BERT, &format!("[{GROUP}]"), "/unum/f", ["ok", "ok"]);
        }
        // The mask goes for all that are named; chmod sets it.
        b.run(&["os.chmod('/unum/f', 0o640)"]);
        for actor in [&mut a, &mut b, &mut c] {
            tries(actor, BERT, &format!("[{GROUP}]"), "/unum/f", ["ok", "EACCES"]);
        }
        if round == 0 {
            // Long enough at rest to be cached.
            std::thread::sleep(std::time::Duration::from_secs(2));
            for actor in [&mut b, &mut c] {
                tries(actor, ANNA, "[]", "/unum/f", ["ok", "EACCES"]);
            }
        }
        set("n1", &format!("-m u:{ANNA}:- /unum/f"));
        for actor in [&mut b, &mut c, &mut a] {
            tries(actor, ANNA, "[]", "/unum/f", ["EACCES", "EACCES"]);
        }
        set("n3", &format!("-m u:{ANNA}:rw /unum/f"));
        for actor in [&mut a, &mut b] {
            tries(actor, ANNA, "[]", "/unum/f", ["ok", "ok"]);
        }
        let shown = playground.does("n1", "getfacl -cnp /unum/f");
        let lines: Vec<&str> = shown.lines().filter(|line| !line.is_empty()).collect();
        let anna = format!("user:{ANNA}:rw-");
        let group = format!("group:{GROUP}:rw-");
        assert_eq!(lines, ["user::rw-", &anna, "group::---", &group, "mask::rw-", "other::---"]);
        assert_eq!(shown, playground.does("n2", "getfacl -cnp /unum/f"));

        // A list is shown as it is, also where nothing but the open file is known of it.
        let shown = "os.getxattr(f, 'system.posix_acl_access')[6 + 8]";
        for (at, bits) in [6, 4, 5, 4, 7, 6].into_iter().enumerate() {
            set(["n1", "n3"][at % 2], &format!("-m u:{ANNA}:{bits} /unum/f"));
            for actor in [&mut b, &mut c] {
                actor.expect(shown, &bits.to_string());
                actor.expect(shown, &bits.to_string());
            }
        }

        // Into directories, likewise.
        let below = format!("as_user({ANNA}, lambda: os.stat('/unum/d/below').st_size)");
        b.expect(&below, "EACCES");
        set("n1", &format!("-m u:{ANNA}:x /unum/d"));
        b.expect(&below, "0");
        set("n1", "-b /unum/d");
        b.expect(&below, "EACCES");
        set("n2", "-b /unum/f");
        for actor in [&mut c, &mut a] {
            tries(actor, ANNA, "[]", "/unum/f", ["EACCES", "EACCES"]);
        }
        b.expect(shown, "ENODATA");
        a.expect("oct(os.stat('/unum/f').st_mode), os.listxattr('/unum/f')", "('0o100600', [])");
    }

    // Only the owner sets them, and root.
    let list =
        "struct.pack('<I' + 'HHI' * 3, 2, 1, 7, 2**32 - 1, 4, 0, 2**32 - 1, 32, 7, 2**32 - 1)";
    let by_anna = |groups: &str| {
        let set = format!("os.setxattr('/unum/f', 'system.posix_acl_access', {list})");
        format!("as_user({ANNA}, lambda: {set}, groups={groups})")
    };
    b.expect(&by_anna("[]"), "EPERM");
    b.run(&[&format!("os.chown('/unum/f', {ANNA}, {GROUP})"), "os.chmod('/unum/f', 0o2770)"]);
    // Who is not in the file's group takes set-group-ID away.
    b.run(&[&by_anna("[]")]);
    c.expect("oct(os.stat('/unum/f').st_mode)", "'0o100707'");
    b.run(&["os.chmod('/unum/f', 0o2770)"]);
    b.run(&[&by_anna(&format!("[{GROUP}]"))]);
    c.expect("oct(os.stat('/unum/f').st_mode)", "'0o102707'");

    // What makes no sense is refused, as is what belongs elsewhere.
    a.expect("os.setxattr('/unum/f', 'system.posix_acl_access', b'nonsense')", "ENOTSUP");
    a.expect(&format!("os.setxattr('/unum/f', 'system.posix_acl_access', {list}[:-1])"), "EINVAL");
    a.expect(&format!("os.setxattr('/unum/f', 'system.posix_acl_default', {list})"), "EACCES");
    a.run(&["os.symlink('f', '/unum/s')"]);
    a.expect(
        &format!(
            "os.setxattr('/unum/s', 'system.posix_acl_access', {list}, follow_symlinks=False)"
        ),
        "ENOTSUP",
    );

    // A machine that loses its power loses no list.
    set(
        "n1",
        &format!("-m u:{BERT}:rw /unum/f && setfacl -d -m u:{BERT}:rwx /unum/d && sync /unum/f"),
    );
    playground.must("cut", &["n1", "n2", "n3"]);
    drop((a, b, c));
    for machine in ["n1", "n2", "n3"] {
        playground.must("boot", &[machine]);
    }
    let [mut b] = actors(&playground, ["n2"]);
    tries(&mut b, BERT, "[]", "/unum/f", ["ok", "ok"]);
    b.expect("os.listxattr('/unum/d')", "['system.posix_acl_default']");
}

/// Each step knows this: all lists below a directory, in an order that is the same everywhere.
const SHOW: &str = "show() { find \"$1\" ! -type l | LC_ALL=C sort | getfacl -n -; }";

/// Whatever tools do with lists, step by step; each prints what came of it.
const STEPS: &[&str] = &[
    "umask 027; mkdir d; echo x >d/plain; show d",
    "umask 077; setfacl -d -m u:61001:rwx,g:62001:rx d; getfacl -cn d; echo x >d/f; mkdir d/e; \
     mkfifo d/p; ln -s f d/s; show d; stat -c '%n %a' d/*",
    "umask 0; install -m 604 /dev/null d/given; mkdir -m 2711 d/e/sgid; mkdir d/e/sgid/below; \
     show d; stat -c '%n %a' d/* d/e/sgid/*",
    "chmod 750 d/f; getfacl -cn d/f; chmod g-x,o+r d/f; getfacl -cn d/f; stat -c %a d/f",
    "setfacl -m u:61002:rw,m::r d/f; getfacl -cn d/f; stat -c %a d/f; setfacl -x u:61001 d/f; \
     getfacl -cn d/f; setfacl -x u:61002,g:62001 d/f; getfacl -cn d/f; stat -c %a d/f",
    "setfacl -b d/f; getfacl -cn d/f; stat -c %a d/f; setfacl -k d/e; getfacl -cn d/e",
    "setfacl -m u:61002:rwX -R d; show d",
    "setfacl -d -m u::rwx,g::rx,o::- d/e; setfacl -d -x u:61001 d/e; getfacl -cn d/e; \
     mkdir d/e/few; echo x >d/e/few/f; show d/e/few",
    "cp -a d with-cp; show with-cp; stat -c '%n %a' with-cp/*",
    "cp -r d with-cp-r; show with-cp-r",
    "tar --acls -cf t.tar d; mkdir with-tar; tar --acls -C with-tar -xf t.tar; \
     show with-tar/d",
    "command -v rsync >/dev/null && { rsync -aA d/ with-rsync/ && show with-rsync; }",
    "getfacl -R d >kept; setfacl -Rb d; show d; setfacl --restore=kept; show d",
    "chown 61001:62001 d/f; getfacl -n d/f; mv d/f d/moved; ln d/moved d/linked; \
     setfacl -m g:62001:x d/linked; getfacl -cn d/moved",
    "cd d; setpriv --reuid=61002 --regid=61002 --clear-groups sh -c 'cat plain; echo y >>plain; \
     touch by-61002; setfacl -m u:61001:r by-61002; setfacl -m u:61001:r plain'; show .",
    "rm -r d with-*; ls",
];

#[test]
fn tools_do_with_lists_what_they_do_elsewhere() {
    if cannot_run_acls() {
        return;
    }
    let playground = Playground::up(&[]);
    let elsewhere = "/tmp/acls";
    let probe = format!("mkdir {elsewhere} && setfacl -m u:{ANNA}:r {elsewhere}");
    if !playground.tries("n1", &probe).status.success() {
        println!("skipped: the machine's own file system keeps no access control lists");
        return;
    }
    playground
        .does("n1", "mkdir /unum/here /unum/strict && chmod 755 /tmp/acls && setfacl -b /tmp/acls");
    playground.does("n1", "unum volume set /unum/strict class=strict");
    for (number, step) in STEPS.iter().enumerate() {
        let run = |machine: &str, place: &str| {
            let output =
                playground.tries(machine, &format!("{SHOW}; cd {place} && {{ {step}; }} 2>&1"));
            text(&output.stdout).replace(place, "PLACE")
        };
        let expected = run("n1", elsewhere);
        // Each step is another machine's.
        let machine = ["n1", "n2", "n3"][number % 3];
        assert_eq!(run(machine, "/unum/here"), expected, "{machine}: {step}");
        assert_eq!(run("n1", "/unum/strict"), expected, "strict: {step}");
    }
}
