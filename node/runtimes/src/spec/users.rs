//! From what a pod and an image say about the user to numbers, by the image's own passwd and group files.
//!
//! The rules are those of the CRI (containerd `oci/spec_opts.go`: `WithUser`, `WithUserID`, `WithAdditionalGIDs`).

use crate::container::User;
use crate::runtime::RuntimeError;

/// Who a container's first process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
}

/// Whether [`resolve`] would need the image's files.
pub fn needs_files(user: &User) -> bool {
    !matches!(user, User::Ids { uid: 0, gid: Some(_) })
}

/// Resolves; `passwd` and `group` are the contents of the image's files, empty where it has none.
pub fn resolve(
    user: &User,
    supplemental: &[u32],
    strict: bool,
    passwd: &str,
    group: &str,
) -> Result<ResolvedUser, RuntimeError> {
    let (account, gid_wanted) = match user {
        User::Ids { uid, gid } => (by_uid(passwd, *uid), *gid),
        User::Image { text, gid } => {
            let (name, group_name) = text.split_once(':').map_or((text.as_str(), None), |(n, g)| (n, Some(g)));
            let account = match (name, name.parse()) {
                ("", _) => by_uid(passwd, 0),
                (_, Ok(uid)) => by_uid(passwd, uid),
                (name, Err(_)) => by_name(passwd, name).ok_or_else(|| {
                    RuntimeError::Config(format!("unable to find user {name}: no matching entries in passwd file"))
                })?,
            };
            let own = group_name.map(|name| gid_of(group, name)).transpose()?;
            (account, gid.or(own))
        }
    };
    let gid = gid_wanted.unwrap_or(account.gid);
    let mut groups = vec![gid];
    if !strict && let Some(name) = account.name {
        groups.extend(groups_of(group, name));
    }
    groups.extend(supplemental);
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|group| seen.insert(*group));
    Ok(ResolvedUser { uid: account.uid, gid, groups })
}

struct Account<'a> {
    name: Option<&'a str>,
    uid: u32,
    gid: u32,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        Some(Account { name: Some(name), uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

fn by_uid(passwd: &str, uid: u32) -> Account<'_> {
    accounts(passwd).find(|account| account.uid == uid).unwrap_or(Account { name: None, uid, gid: 0 })
}

fn by_name<'a>(passwd: &'a str, name: &str) -> Option<Account<'a>> {
    accounts(passwd).find(|account| account.name == Some(name))
}

fn gid_of(group: &str, name: &str) -> Result<u32, RuntimeError> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let found = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? == name { fields.nth(1)?.parse().ok() } else { None }
    });
    found.ok_or_else(|| RuntimeError::Config(format!("unable to find group {name}: no matching entries in group file")))
}

fn groups_of<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?.parse().ok()?;
        fields.next()?.split(',').any(|member| member.trim() == user).then_some(gid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nextra:x:700:alice,web\nadm:x:4:web\n";

    fn image(text: &str, gid: Option<u32>) -> User {
        User::Image { text: text.to_owned(), gid }
    }

    #[test]
    fn users_become_numbers() {
        for (name, user, expected) in [
            ("empty is root", image("", None), (0, 0, vec![0])),
            ("a name", image("web", None), (101, 102, vec![102, 700, 4])),
            ("a name with a group", image("web:extra", None), (101, 700, vec![700, 4])),
            ("a number that has a name", image("101", None), (101, 102, vec![102, 700, 4])),
            ("a number without one", image("5000", None), (5000, 0, vec![0])),
            ("two numbers", image("5000:6000", None), (5000, 6000, vec![6000])),
            ("the pod's group wins", image("web:extra", Some(9)), (101, 9, vec![9, 700, 4])),
            ("the pod's user", User::Ids { uid: 101, gid: None }, (101, 102, vec![102, 700, 4])),
            ("the pod's both", User::Ids { uid: 1000, gid: Some(3000) }, (1000, 3000, vec![3000])),
        ] {
            let user = resolve(&user, &[], false, PASSWD, GROUP).unwrap();
            assert_eq!((user.uid, user.gid, user.groups), expected, "{name}");
        }
    }

    #[test]
    fn supplemental_groups_come_last_and_once() {
        let user = resolve(&image("web", None), &[700, 2000], false, PASSWD, GROUP).unwrap();
        assert_eq!(user.groups, [102, 700, 4, 2000]);
        let user = resolve(&image("web", None), &[2000], true, PASSWD, GROUP).unwrap();
        assert_eq!(user.groups, [102, 2000]);
    }

    #[test]
    fn unknown_names_are_refused() {
        for text in ["nobody", "web:nogroup"] {
            assert!(resolve(&image(text, None), &[], false, PASSWD, GROUP).is_err(), "{text}");
        }
    }
}
