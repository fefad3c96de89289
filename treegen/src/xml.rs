//! The XML files of a backup tree, in the vendor's shape.

use std::fmt::Write as _;

use crate::clock;
use crate::config::{BlobMode, Kind};
use crate::mailbox::{Account, Item, Site, domain};
use crate::rng::Rng;

/// Number of the first redo log; that of step n is n higher.
pub const FIRST_SEQUENCE: u32 = 117;
const HEAD: &str =
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\n<backupMetadata xmlns=\"urn:zimbraBackupMeta\" version=\"7.1\">";
const TAIL: &str = "</backupMetadata>\n";

/// Names the release that wrote the tree.
fn release(site: &Site) -> String {
    match site.config.zcs {
        7 => "7.2.7_GA_2942".to_owned(),
        major => format!("{major}.0.0_GA_4150"),
    }
}

/// Lists the account numbers in the order of a hash table.
fn hash_order(site: &Site) -> Vec<usize> {
    let mut order: Vec<usize> = (0..site.accounts.len()).collect();
    order.sort_by_key(|&a| crate::rng::key(&[a as u64, 0x4a61_7661]));
    order
}

/// Composes `accounts.xml`: every account that has a full, with the label of its newest.
pub fn accounts(site: &Site) -> String {
    let mut xml = format!("{HEAD}\n  <allAccounts>\n");
    for number in hash_order(site) {
        let account = &site.accounts[number];
        let newest = site.fulls().rfind(|(_, step)| step.holds(number as u32, site.config.groups));
        if let Some(label) = newest.map(|(_, step)| step.label()) {
            let _ = writeln!(
                xml,
                "    <account zimbraId=\"{}\" email=\"{}\" latestFullBackupLabel=\"{label}\"></account>",
                account.uuid, account.email
            );
        }
    }
    xml + "  </allAccounts>\n" + TAIL
}

/// Composes `session.xml`.
pub fn session(site: &Site, number: u32, end_ms: i64) -> String {
    let step = &site.steps[number as usize];
    let (kind, first) = match step.kind {
        Kind::Full if !step.has_logs() => ("full", number),
        Kind::Full => ("full", step.first_log),
        Kind::Incremental => ("incremental", step.first_log),
    };
    let mut xml = format!(
        "{HEAD}\n  <backupSet label=\"{}\" zcsRelease=\"{}\" startTime=\"{}\" endTime=\"{end_ms}\" minRedoSeq=\"{}\" maxRedoSeq=\"{}\" sharedBlobsZipped=\"{}\" type=\"{kind}\" accountsDirectoryDepth=\"2\">\n    <accounts>\n",
        step.label(),
        release(site),
        step.start_ms,
        first + FIRST_SEQUENCE,
        number + FIRST_SEQUENCE,
        site.config.blobs != BlobMode::Files
    );
    for number in hash_order(site).into_iter().filter(|number| step.holds(*number as u32, site.config.groups)) {
        let account = &site.accounts[number];
        let _ = writeln!(
            xml,
            "      <account zimbraId=\"{}\" email=\"{}\" status=\"COMPLETED\"></account>",
            account.uuid,
            account.email.to_lowercase()
        );
    }
    xml + "    </accounts>\n    <errors></errors>\n  </backupSet>\n" + TAIL
}

/// Composes an account's `meta.xml`.
pub fn meta(account: &Account, number: u32, start_ms: i64, end_ms: i64, messages: usize) -> String {
    format!(
        "{HEAD}\n  <accountBackup zimbraId=\"{}\" email=\"{}\" mailboxId=\"{}\" startTime=\"{start_ms}\" endTime=\"{end_ms}\" redoSeq=\"{}\" server=\"mail.example.com\">\n    <database schema=\"db/db_schema.xml\"></database>\n    <blobs volume=\"1\" count=\"{messages}\"></blobs>\n    <index volume=\"2\"></index>\n  </accountBackup>\n{TAIL}",
        account.uuid,
        account.email,
        account.mailbox_id,
        number + FIRST_SEQUENCE
    )
}

/// Lists an account's LDAP attributes as of a step.
fn attributes(site: &Site, account: u32, step: u32) -> Vec<(&'static str, String)> {
    let a = &site.accounts[account as usize];
    let mut rng = Rng::new(&[site.config.seed, domain::LDAP, account.into()]);
    let mut hash = String::new();
    for _ in 0..4 {
        let _ = write!(hash, "{:016x}", rng.bits());
    }
    // An account is used on some days only, and this changes its record.
    let logon =
        (0..=step).rev().find(|&s| Rng::new(&[site.config.seed, domain::LDAP, account.into(), s.into()]).chance(60.0));
    let logon_ms = site.steps[logon.unwrap_or(0) as usize].start_ms - rng.range(3_600_000, 40_000_000) as i64;
    let mut list = vec![
        ("uid", a.email.split('@').next().unwrap_or_default().to_lowercase()),
        ("objectClass", "inetOrgPerson".to_owned()),
        ("objectClass", "zimbraAccount".to_owned()),
        ("objectClass", "amavisAccount".to_owned()),
        ("cn", a.name.clone()),
        ("displayName", a.name.clone()),
        ("mail", a.email.clone()),
        ("userPassword", format!("{{SSHA512}}{hash}")),
        ("zimbraId", a.uuid.clone()),
        ("zimbraAccountStatus", "active".to_owned()),
        ("zimbraMailHost", "mail.example.com".to_owned()),
        ("zimbraMailTransport", "lmtp:mail.example.com:7025".to_owned()),
        ("zimbraMailDeliveryAddress", a.email.clone()),
        ("zimbraCreateTimestamp", clock::stamp(site.config.start_ms - rng.range(1, 60_000_000) as i64 * 1000)),
        ("zimbraLastLogonTimestamp", clock::stamp(logon_ms)),
        ("zimbraAuthTokenValidityValue", rng.below(30).to_string()),
    ];
    for (name, choices) in [
        ("zimbraPrefLocale", ["en", "de"]),
        ("zimbraPrefTimeZoneId", ["Europe/Berlin", "Europe/London"]),
        ("zimbraPrefComposeFormat", ["html", "text"]),
        ("zimbraPrefGroupMailBy", ["conversation", "message"]),
        ("zimbraPrefMailItemsPerPage", ["25", "100"]),
        ("zimbraPrefSkin", ["serenity", "harmony"]),
        ("zimbraFeatureCalendarEnabled", ["TRUE", "FALSE"]),
        ("zimbraPrefIncludeSpamInSearch", ["FALSE", "TRUE"]),
        ("zimbraPrefCalendarFirstDayOfWeek", ["1", "0"]),
    ] {
        list.push((name, (*rng.pick(&choices)).to_owned()));
    }
    if account == 1 {
        // A rule with a control character, which XML 1.0 forbids: seen in real filters.
        list.push(("zimbraMailSieveScript", "require [&quot;fileinto&quot;];&#10;if header :contains &quot;subject&quot; &quot;bell&#7;&quot; { fileinto &quot;Rings&quot;; stop; }".to_owned()));
    }
    list
}

/// Composes an account's `ldap.xml`.
pub fn ldap(site: &Site, account: u32, step: u32) -> String {
    let mut xml = format!(
        "{HEAD}\n  <account dn=\"uid={},ou=people,dc=example,dc=com\">\n",
        site.accounts[account as usize].uuid
    );
    for (name, value) in attributes(site, account, step) {
        let _ = writeln!(xml, "    <attr name=\"{name}\">{value}</attr>");
    }
    xml + "  </account>\n" + TAIL
}

/// Composes `ldap/ldap.bak`, an LDIF dump of the directory.
pub fn ldif(site: &Site, step: u32) -> String {
    let mut text =
        String::from("dn: dc=com\nobjectClass: dcObject\nobjectClass: organization\ndc: com\no: com domain\n\n");
    for number in 0..site.accounts.len() as u32 {
        let _ = writeln!(text, "dn: uid={},ou=people,dc=example,dc=com", site.accounts[number as usize].uuid);
        for (name, value) in attributes(site, number, step) {
            let _ = writeln!(text, "{name}: {value}");
        }
        text.push('\n');
    }
    text
}

/// Composes a `db_schema.xml` for the named tables.
pub fn schema(tables: &[&str]) -> String {
    let mut xml = format!("{HEAD}\n  <databaseSchema>\n");
    for table in tables {
        let _ = writeln!(xml, "    <table name=\"{table}\">");
        for (n, column) in [
            "id",
            "mailbox_id",
            "type",
            "parent_id",
            "folder_id",
            "date",
            "size",
            "blob_digest",
            "flags",
            "tags",
            "sender",
            "subject",
            "metadata",
            "mod_metadata",
            "change_date",
            "mod_content",
        ]
        .iter()
        .enumerate()
        {
            let _ = writeln!(
                xml,
                "      <column name=\"{column}\" type=\"{}\" nullable=\"{}\"></column>",
                if n < 7 { "INTEGER" } else { "VARCHAR" },
                n > 3
            );
        }
        xml.push_str("    </table>\n");
    }
    xml + "  </databaseSchema>\n" + TAIL
}

/// Composes `sys/localconfig.xml`.
pub fn localconfig(site: &Site) -> String {
    let mut rng = Rng::new(&[site.config.seed, domain::LDAP]);
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\n<localconfig>\n");
    for name in [
        "ldap_root_password",
        "zimbra_ldap_password",
        "mysql_root_password",
        "zimbra_mysql_password",
        "ldap_postfix_password",
        "ldap_amavis_password",
        "zimbra_server_hostname",
        "mailboxd_java_options",
        "zimbra_home",
        "zimbra_uid",
    ] {
        let _ = writeln!(xml, "  <key name=\"{name}\">\n    <value>{:x}</value>\n  </key>", rng.bits());
    }
    xml + "</localconfig>\n"
}

/// Appends the row of a message to the dump of `mail_item`.
pub fn mail_item(row: &mut String, site: &Site, mailbox_id: u32, item: &Item, digest: &str, size: usize, step: u32) {
    let date = site.delivered_ms(item.mail, item.born) / 1000;
    let mut rng = Rng::new(&[site.mail_key(item.mail), domain::ROW]);
    // A few messages are read or moved each week, which changes their flags and counters.
    let touched = (0..=step)
        .rev()
        .find(|&s| s <= item.born || Rng::new(&[site.mail_key(item.mail), domain::ROW, s.into()]).chance(1.0));
    let change = site.steps[touched.unwrap_or(0) as usize].start_ms / 1000;
    let _ = writeln!(
        row,
        "{mailbox_id}\t{}\t5\t\\N\t{}\t\\N\t{}\t{date}\t{size}\t1\t{digest}\t{}\t{}\t0\t{:x}\t{:x} {:x}\td1:f{}:{:x}1:v2:10e\t{change}\t{change}\t{}",
        item.id,
        rng.range(2, 40),
        item.id,
        rng.below(2),
        change % 8,
        rng.bits() >> 24,
        rng.bits(),
        rng.bits() >> 16,
        rng.below(90),
        rng.bits(),
        item.modified
    );
}
