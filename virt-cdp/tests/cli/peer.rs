//! Who may use the API, as a table.

use virt_cdp::daemon::peer::{Accounts, Door, Peer};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n\
                      broken line\neve:x:1002:1002::/:/bin/sh\nnot:x:number:5::/:\n";
const GROUP: &str = "root:x:0:\nvirt-cdp:x:107:ann,zoe\nothers:x:108:bob\nbroken\nempty:x:109:\n";

#[test]
fn root_the_own_user_and_members_are_let_in_and_nobody_else() {
    let accounts = Accounts::parse(PASSWD, GROUP);
    let door = Door {
        own_uid: 64055,
        gid: 107,
    };
    let table = [
        ("root", 0, 0, true),
        ("the daemon's own user", 64055, 64055, true),
        ("primary group", 1002, 107, true),
        ("member in the group file", 1000, 1000, true),
        ("member of another group", 1001, 1001, false),
        ("nobody special", 1002, 1002, false),
        ("a user without an account", 4242, 4242, false),
        ("root's group alone", 4242, 0, false),
    ];
    for (who, uid, gid, admitted) in table {
        assert_eq!(
            door.admits(
                Peer {
                    pid: None,
                    uid,
                    gid
                },
                &accounts
            ),
            admitted,
            "{who}"
        );
    }
}

#[test]
fn groups_are_found_by_name() {
    let accounts = Accounts::parse(PASSWD, GROUP);
    assert_eq!(accounts.group("virt-cdp"), Some(107));
    assert_eq!(accounts.group("empty"), Some(109));
    assert_eq!(accounts.group("broken"), None);
    assert_eq!(accounts.group(""), None);
}
