//! Redo logs: the mail of a day as a stream of operations, with the text of the messages.

use std::io::{self, Write};

use crate::mailbox::{Item, Mail, Site, domain};
use crate::message::Composer;
use crate::rng::Rng;

/// Size of the header in front of the first operation.
const HEADER: usize = 512;
/// Operation that stores the text of a message.
const STORE_BLOB: u32 = 84;
/// Operation that makes a message of a stored text.
const CREATE_MESSAGE: u32 = 63;
/// Operation that changes the flags of a message.
const ALTER_TAG: u32 = 67;

/// Writes one operation: magic, kind, time, mailbox, length, payload.
fn operation(out: &mut impl Write, kind: u32, at_ms: i64, mailbox: u32, payload: &[&[u8]]) -> io::Result<()> {
    let length: usize = payload.iter().map(|p| p.len()).sum();
    let mut head = Vec::with_capacity(32);
    head.extend_from_slice(b"REDO\0\x01\0\x28");
    head.extend_from_slice(&kind.to_be_bytes());
    head.extend_from_slice(&at_ms.to_be_bytes());
    head.extend_from_slice(&mailbox.to_be_bytes());
    head.extend_from_slice(&(length as u64).to_be_bytes());
    out.write_all(&head)?;
    payload.iter().try_for_each(|part| out.write_all(part))
}

/// Writes the log of a step: the messages that arrived before it, in order of arrival, and small operations between them.
pub fn write(
    out: &mut impl Write,
    site: &Site,
    composer: &mut Composer<'_>,
    step: u32,
    sequence: u32,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    let info = &site.steps[step as usize];
    let opened_ms = info.start_ms - info.days.max(1) * crate::clock::DAY_MS;
    let mut header = b"ZMREDO".to_vec();
    header.push(0);
    header.extend_from_slice(&u64::from(sequence).to_be_bytes());
    header.extend_from_slice(b"\x1email.example.com");
    header.extend_from_slice(&opened_ms.to_be_bytes());
    header.extend_from_slice(&info.start_ms.to_be_bytes());
    header.resize(HEADER, 0);
    out.write_all(&header)?;
    let mut arrivals: Vec<(i64, u32, Item)> = Vec::new();
    // The initial mail came long before the first log.
    if step > 0 {
        for account in 0..site.accounts.len() as u32 {
            arrivals.extend(
                site.new_items(account, step).into_iter().map(|i| (site.delivered_ms(i.mail, i.born), account, i)),
            );
        }
    }
    arrivals.sort_by_key(|&(at_ms, account, item)| (at_ms, item.mail, account));
    let mut rng = Rng::new(&[site.config.seed, domain::REDO, step.into()]);
    let mut last: Option<Mail> = None;
    for (at_ms, account, item) in arrivals {
        let mailbox = site.accounts[account as usize].mailbox_id;
        if last != Some(item.mail) {
            composer.compose(item.mail, item.born, buffer);
            operation(out, STORE_BLOB, at_ms, mailbox, &[&(buffer.len() as u32).to_be_bytes(), buffer])?;
            last = Some(item.mail);
        }
        let create = format!("\0\x1flmtp:{mailbox}\0{}-{}\0\x02in\0{:x}", item.id, item.modified, rng.bits());
        operation(out, CREATE_MESSAGE, at_ms, mailbox, &[create.as_bytes()])?;
        for _ in 0..rng.below(6) {
            let payload = [rng.bits().to_be_bytes(), rng.below(40_000).to_be_bytes()];
            operation(out, ALTER_TAG, at_ms + 7, mailbox, &[&payload[0], &payload[1]])?;
        }
    }
    for _ in 0..40 {
        let payload = [rng.bits().to_be_bytes(), rng.below(40_000).to_be_bytes()];
        operation(out, ALTER_TAG, info.start_ms, 0, &[&payload[0], &payload[1]])?;
    }
    Ok(())
}
