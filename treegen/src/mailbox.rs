//! The model of a site: accounts, their messages, and how both change from session to session.
//!
//! Nothing is stored. Which messages an account holds at a step follows from the seed and the list of steps, so any later
//! step can know what an earlier one wrote.

use crate::clock::DAY_MS;
use crate::config::{Config, Kind, Status, Step};
use crate::rng::{Rng, key};
use crate::words::{FIRST, LAST};

/// Share of messages that a week deletes.
const WEEKLY_DELETED: f64 = 0.005;
/// Mailboxes that a shared message is delivered to, on average.
const RECIPIENTS: f64 = 4.0;
/// First item number of a message: those below belong to folders.
const FIRST_ITEM: u32 = 257;

/// Domains of random numbers, so that no two uses share a sequence.
pub(crate) mod domain {
    pub const UUID: u64 = 10;
    pub const COUNT: u64 = 11;
    pub const NEW: u64 = 12;
    pub const ITEM: u64 = 13;
    pub const PRIVATE: u64 = 14;
    pub const SHARED: u64 = 15;
    pub const LDAP: u64 = 16;
    pub const INDEX: u64 = 17;
    pub const SESSION: u64 = 18;
    pub const ORDER: u64 = 19;
    pub const REDO: u64 = 20;
    pub const ATTACHMENT: u64 = 21;
    pub const ROW: u64 = 22;
    pub const TIME: u64 = 23;
}

/// An account of the site.
#[derive(Debug, Clone)]
pub struct Account {
    /// The account's `zimbraId`.
    pub uuid: String,
    /// Address in the case that the administrator typed.
    pub email: String,
    /// Display name.
    pub name: String,
    /// Number of the mailbox.
    pub mailbox_id: u32,
    /// Messages at the first step.
    initial: u32,
}

/// Whose content a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mail {
    /// A message of one mailbox: account and ordinal.
    Private(u32, u32),
    /// A message of several mailboxes: step of delivery and number within it.
    Shared(u32, u32),
}

/// A message in a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Position among all messages that the mailbox ever had.
    pub ordinal: u32,
    /// Item number.
    pub id: u32,
    /// Modification number in the blob's name.
    pub modified: u32,
    /// Step that the message arrived before.
    pub born: u32,
    /// The content.
    pub mail: Mail,
}

/// The site at a point in its history.
#[derive(Debug)]
pub struct Site {
    /// The parameters.
    pub config: Config,
    /// All accounts; the position is the account's number.
    pub accounts: Vec<Account>,
    /// The sessions so far.
    pub steps: Vec<Step>,
}

impl Site {
    /// Derives the site from its parameters and sessions.
    pub fn new(config: Config, steps: Vec<Step>) -> Self {
        let weights: Vec<f64> = (0..config.accounts)
            .map(|a| (0.5 * Rng::new(&[config.seed, domain::COUNT, a.into()]).normal()).exp().clamp(0.3, 3.5))
            .collect();
        let unit = f64::from(config.accounts) * f64::from(config.messages) / weights.iter().sum::<f64>();
        let accounts = weights
            .iter()
            .enumerate()
            .map(|(number, weight)| account(config.seed, number as u32, (weight * unit).round() as u32))
            .collect();
        Self { config, accounts, steps }
    }

    /// Lists the finished fulls, oldest first, with their step numbers.
    pub fn fulls(&self) -> impl DoubleEndedIterator<Item = (usize, &Step)> {
        self.steps.iter().enumerate().filter(|(_, s)| s.kind == Kind::Full && s.status == Status::Finished)
    }

    /// Counts the messages that arrive in an account before a step.
    fn arrivals(&self, account: u32, step: u32) -> u32 {
        let initial = self.accounts[account as usize].initial;
        if step == 0 {
            return initial;
        }
        let days = self.steps[step as usize].days as f64;
        let expected = f64::from(initial) * (self.config.weekly_new_percent / 100.0) * days / 7.0;
        (expected + Rng::new(&[self.config.seed, domain::NEW, account.into(), step.into()]).unit()) as u32
    }

    /// Counts the shared messages that are delivered before a step.
    fn shared_pool(&self, step: u32) -> u64 {
        let mut deliveries = f64::from(self.config.accounts) * f64::from(self.config.messages);
        if step > 0 {
            deliveries *= self.config.weekly_new_percent / 100.0 * self.steps[step as usize].days as f64 / 7.0;
        }
        ((deliveries * self.config.shared_percent / 100.0 / RECIPIENTS) as u64).max(1)
    }

    /// Estimates the number of different messages, which fixes how many popular attachments there are.
    pub fn expected_messages(&self) -> f64 {
        let shared = self.config.shared_percent / 100.0 * (1.0 - 1.0 / RECIPIENTS);
        f64::from(self.config.accounts) * f64::from(self.config.messages) * (1.0 - shared)
    }

    fn item(&self, account: u32, ordinal: u32, born: u32) -> (Item, i64) {
        let mut rng = Rng::new(&[self.config.seed, domain::ITEM, account.into(), ordinal.into()]);
        let mail = if self.config.accounts > 1 && rng.chance(self.config.shared_percent) {
            Mail::Shared(born, rng.below(self.shared_pool(born)) as u32)
        } else {
            Mail::Private(account, ordinal)
        };
        // Contacts and appointments take some of the item numbers between messages.
        let id = FIRST_ITEM + ordinal + ordinal / 9;
        let modified = 3 + rng.below(u64::from(id) * 2) as u32;
        let lifetime = (-(1.0 - rng.unit()).ln() / (WEEKLY_DELETED / 7.0)) as i64;
        let dies = self.steps[born as usize].day + lifetime.max(8);
        // The first step's messages are of all ages: for them there is no least lifetime.
        let dies = if born == 0 { lifetime.max(1) } else { dies };
        (Item { ordinal, id, modified, born, mail }, dies)
    }

    /// Lists the messages that an account holds at a step.
    pub fn items(&self, account: u32, step: u32) -> Vec<Item> {
        let today = self.steps[step as usize].day;
        let mut items = Vec::new();
        let mut ordinal = 0;
        for born in 0..=step {
            for _ in 0..self.arrivals(account, born) {
                let (item, dies) = self.item(account, ordinal, born);
                if dies > today {
                    items.push(item);
                }
                ordinal += 1;
            }
        }
        items
    }

    /// Lists the messages that arrive in an account before a step.
    pub fn new_items(&self, account: u32, step: u32) -> Vec<Item> {
        let before: u32 = (0..step).map(|s| self.arrivals(account, s)).sum();
        (before..before + self.arrivals(account, step)).map(|ordinal| self.item(account, ordinal, step).0).collect()
    }

    /// Returns the key that a message's content follows from.
    pub fn mail_key(&self, mail: Mail) -> u64 {
        let seed = self.config.seed;
        match mail {
            Mail::Private(account, ordinal) => key(&[seed, domain::PRIVATE, account.into(), ordinal.into()]),
            Mail::Shared(step, number) => key(&[seed, domain::SHARED, step.into(), number.into()]),
        }
    }

    /// Returns when a message was delivered, given the step that it arrived before.
    pub fn delivered_ms(&self, mail: Mail, born: u32) -> i64 {
        let mut rng = Rng::new(&[self.mail_key(mail), domain::TIME]);
        let step = &self.steps[born as usize];
        let days = if born == 0 { 700.0 } else { step.days.max(1) as f64 };
        // Squaring the draw makes recent mail of the first step more frequent than old mail.
        let back = if born == 0 { rng.unit() * rng.unit() } else { rng.unit() };
        step.start_ms - 60_000 - (back * days * DAY_MS as f64) as i64
    }

    /// Returns how many links a shared message has in the mail store (at least two; the number behind `.msg`).
    pub fn links(&self, mail: Mail) -> u32 {
        match mail {
            Mail::Private(..) => 1,
            Mail::Shared(..) => 2 + (self.mail_key(mail) % 5) as u32,
        }
    }
}

fn account(seed: u64, number: u32, initial: u32) -> Account {
    let first: Vec<&str> = FIRST.split(' ').collect();
    let last: Vec<&str> = LAST.split(' ').collect();
    let (f, round) = (number as usize % first.len(), number as usize / first.len());
    let l = (round + 7 * f) % last.len();
    let suffix = match round / last.len() {
        0 => String::new(),
        n => n.to_string(),
    };
    let (first, last) = (first[f], last[l]);
    // Some administrators type capitals; the directory keeps them.
    let local = if number % 5 == 3 {
        format!("{first}.{last}{suffix}")
    } else {
        format!("{first}.{last}{suffix}").to_lowercase()
    };
    let mut rng = Rng::new(&[seed, domain::UUID, number.into()]);
    let (a, b) = (rng.bits(), rng.bits());
    Account {
        uuid: format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            0x8000 | (b >> 48) & 0x3fff,
            b & 0xffff_ffff_ffff
        ),
        email: format!("{local}@example.com"),
        name: format!("{first} {last}"),
        mailbox_id: number + 3,
        initial,
    }
}
