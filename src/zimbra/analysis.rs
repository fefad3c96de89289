//! What can be restored of every account of a snapshot.
//!
//! An account A can be restored to a time T from its newest full session that started at or before T and lists A without an error, if A's directory
//! in it is whole, the shared messages that its placeholders name are in the session, and the redo logs from the sequence number in A's meta.xml on are
//! in any sessions without a gap up to T.
//!
//! Work: the names of full sessions; incrementals cost their lists only. Where the directories of an account did not change since the last snapshot that the
//! same [`Analyser`] looked at, nothing of them is read again. Memory: some 100 bytes for each account in each full session, 12 for each listed in an
//! incremental, and 16 for each shared message of one session at a time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::account::{Account, AccountState, Fault, FaultKind, FullOfAccount, Severity, intervals};
use super::cache::{self, Kept};
use super::facts::{Facts, FactsKey, Meta, SharedKey, SharedMessages, facts_key, gather, shared_key};
use super::input::{StoreError, ZipReader};
use super::recent::Recent;
use super::redo::{Chain, RedoLogs, SequenceRange};
use super::site::{Files, ListedAccount, Place, Session, SessionState, Site, read_site};
use crate::layout::xml::AccountStatus;
use crate::layout::{SESSION_ACCOUNTS, SHARED_BLOBS, SessionKind};
use crate::view::{DirectoryNode, Node, SnapshotView, ViewError};

/// Threads that look at accounts' directories.
const THREADS_MAX: usize = 4;
/// Accounts that a thread takes at a time.
const BATCH: usize = 64;

/// What one snapshot's tree holds, and what can be restored from it.
pub struct Analysis {
    /// Path of the tree within the snapshot; empty for the root.
    pub tree: String,
    /// All sessions, oldest first, whatever their state.
    pub sessions: Vec<Session>,
    /// All accounts that accounts.xml or a full session knows, by address.
    pub accounts: Vec<Account>,
    /// The redo logs of finished sessions.
    pub redo: RedoLogs,
    /// What is odd about the tree as a whole, in words.
    pub remarks: Vec<String>,
    /// What is odd about the fulls' shared messages, by place in the list of sessions.
    pub shared_remarks: Vec<(usize, String)>,
    /// What kept a part of the tree from being looked at, if anything did: what is said of sessions and accounts may be too little then, and would be more of a
    /// store that can be read.
    pub store_error: Option<StoreError>,
}

/// Reads snapshots of one store, and remembers what does not change between them.
#[derive(Default)]
pub struct Analyser {
    files: Files,
    facts: Recent<FactsKey, Arc<Facts>>,
    shared_remarks: Recent<SharedKey, Arc<Vec<String>>>,
    directories_read: u64,
}

/// An account's directory in one full, or why it cannot be looked at.
type Found = Result<Arc<Facts>, String>;

/// What a full session holds of its accounts, by number of the identifier, and what is odd about its shared messages.
type Held = (HashMap<u32, Found>, Arc<Vec<String>>);

/// A full session with what it holds of the accounts that it lists.
struct FullSession {
    place: usize,
    /// By number of the identifier.
    found: HashMap<u32, Found>,
    /// Errors by the number of the lower-cased address.
    errors: HashMap<u32, usize>,
}

impl Analyser {
    /// Makes one that knows what earlier runs found out about the snapshots of a store, as far as that was kept and fits.
    pub fn with_kept(store: &Path, has_snapshot: impl Fn(&str) -> bool) -> Analyser {
        let mut analyser = Analyser::default();
        let kept = cache::load(store, has_snapshot);
        for (key, age, facts) in kept.facts {
            if let Some(key) = cache::key_of(&key) {
                analyser.facts.remember(FactsKey(key), Arc::new(facts), age);
            }
        }
        for (key, age, remarks) in kept.shared {
            if let Some(key) = cache::key_of(&key) {
                analyser.shared_remarks.remember(SharedKey(key), Arc::new(remarks), age);
            }
        }
        analyser
    }

    /// Keeps what was found out for later runs, if there is anything new. That it cannot be kept is no error.
    pub fn keep(&self, store: &Path, newest_snapshot: &str) {
        if self.directories_read == 0 {
            return;
        }
        let facts = self.facts.all().map(|(key, age, facts)| (cache::key_text(&key.0), age, facts.as_ref().clone()));
        let shared = self.shared_remarks.all();
        let shared = shared.map(|(key, age, remarks)| (cache::key_text(&key.0), age, remarks.as_ref().clone()));
        cache::save(store, newest_snapshot, Kept { facts: facts.collect(), shared: shared.collect() });
    }

    /// Returns how many directories of accounts were looked at so far; those that are known from before do not count.
    #[cfg(any(test, feature = "testing"))]
    pub fn directories_read(&self) -> u64 {
        self.directories_read
    }

    /// Returns what the tree at a path of a snapshot holds; the path is empty for the root. What is wrong with the tree is part of the answer.
    ///
    /// # Errors
    /// Fails when the store cannot be read above the sessions' own directories.
    pub fn analyse(&mut self, view: &SnapshotView, tree: &[u8]) -> Result<Analysis, ViewError> {
        self.files.age();
        self.facts.age();
        self.shared_remarks.age();
        // Of an analysis that failed.
        self.files.store_errors.take();
        let site = read_site(&mut self.files, view, tree)?;
        let mut fulls = Vec::new();
        let mut shared_remarks = Vec::new();
        for (place, session) in site.sessions.iter().enumerate() {
            if is_candidate(session)
                && let Some(parsed) = &session.file
            {
                let found = match self.full_session(view, session, &parsed.accounts) {
                    Ok((found, remarks)) => {
                        shared_remarks.extend(remarks.iter().map(|remark| (place, remark.clone())));
                        found
                    }
                    // The accounts of this session alone are affected.
                    Err(error) => {
                        self.files.store_errors.add(&error);
                        let reason = error.to_string();
                        parsed.accounts.iter().map(|account| (account.id, Err(reason.clone()))).collect()
                    }
                };
                let errors = parsed.errors.iter().enumerate().map(|(at, (email, _))| (*email, at)).collect();
                fulls.push(FullSession { place, found, errors });
            }
        }
        let accounts = self.judge(&site, &fulls);
        let Site { sessions, redo, remarks, .. } = site;
        let store_error = self.files.store_errors.take();
        let tree = String::from_utf8_lossy(tree).into_owned();
        Ok(Analysis { tree, sessions, accounts, redo, remarks, shared_remarks, store_error })
    }

    /// Looks at the directories of all accounts that a full session lists.
    fn full_session(
        &mut self,
        view: &SnapshotView,
        session: &Session,
        listed: &[ListedAccount],
    ) -> Result<Held, ViewError> {
        let directories = self.directories(view, session, listed)?;
        let shared = match view.lookup(&session.directory, SHARED_BLOBS.as_bytes())? {
            Some(Node::Directory(directory)) => Some(directory),
            _ => None,
        };
        let key = shared_key(shared.as_ref());
        let mut found = HashMap::with_capacity(directories.len());
        let mut todo = Vec::new();
        for (account, directory) in directories {
            match facts_key(view, &directory, key) {
                Ok(key) => match self.facts.get(&key) {
                    Some(facts) => drop(found.insert(account, Ok(facts))),
                    None => todo.push((account, key, directory)),
                },
                Err(error) => {
                    self.files.store_errors.add(&error);
                    found.insert(account, Err(error.to_string()));
                }
            }
        }
        if !todo.is_empty() || self.shared_remarks.get(&key).is_none() {
            let messages = SharedMessages::read(view, shared.as_ref())?;
            self.shared_remarks.insert(key, Arc::new(messages.remarks()));
            self.directories_read += todo.len() as u64;
            for (account, key, facts) in gather_all(view, &todo, &messages) {
                match &facts {
                    Ok(facts) => self.facts.insert(key, Arc::clone(facts)),
                    Err(error) => self.files.store_errors.add(error),
                }
                found.insert(account, facts.map_err(|error| error.to_string()));
            }
        }
        let remarks = self.shared_remarks.get(&key).unwrap_or_default();
        Ok((found, remarks))
    }

    /// Finds the directories of the accounts that a session lists, in the order of the tree.
    fn directories(
        &mut self,
        view: &SnapshotView,
        session: &Session,
        listed: &[ListedAccount],
    ) -> Result<Vec<(u32, DirectoryNode)>, ViewError> {
        let wanted: HashMap<&str, u32> =
            listed.iter().map(|account| (self.files.names.text(account.id), account.id)).collect();
        let mut found = Vec::with_capacity(listed.len());
        if let Some(Node::Directory(top)) = view.lookup(&session.directory, SESSION_ACCOUNTS.as_bytes())? {
            descend(view, &top, session.depth(), &wanted, &mut found)?;
        }
        Ok(found)
    }

    /// Puts together what is known of every account.
    fn judge(&mut self, site: &Site, fulls: &[FullSession]) -> Vec<Account> {
        let mut places: HashMap<u32, usize> = HashMap::new();
        let mut drafts: Vec<Draft> = Vec::new();
        let mut draft = |drafts: &mut Vec<Draft>, id: u32| {
            *places.entry(id).or_insert_with(|| {
                drafts.push(Draft::new(id));
                drafts.len() - 1
            })
        };
        for known in site.accounts.iter().flat_map(|accounts| &accounts.accounts) {
            let at = draft(&mut drafts, known.id);
            drafts[at].email = Some(known.email);
            drafts[at].latest = known.latest;
            drafts[at].in_accounts = true;
        }
        for (at_full, full) in fulls.iter().enumerate() {
            let Some(parsed) = &site.sessions[full.place].file else { continue };
            for listed in &parsed.accounts {
                let at = draft(&mut drafts, listed.id);
                // One that a session lists twice is listed once.
                if drafts[at].listed.last().is_none_or(|(last, _)| *last != at_full) {
                    drafts[at].listed.push((at_full, *listed));
                }
            }
        }
        let mut judge = Judge { files: &self.files, site, fulls, chains: HashMap::new() };
        let mut accounts: Vec<Account> = drafts.into_iter().map(|draft| judge.account(draft)).collect();
        accounts.sort_by_cached_key(|account| (account.email.to_lowercase(), account.id.clone()));
        accounts
    }
}

/// Returns whether a restore would take accounts from a session.
fn is_candidate(session: &Session) -> bool {
    session.kind == SessionKind::Full && session.place == Place::Sessions && session.state != SessionState::Invalid
}

/// Goes down the levels above the accounts' directories.
fn descend(
    view: &SnapshotView,
    directory: &DirectoryNode,
    levels: u64,
    wanted: &HashMap<&str, u32>,
    found: &mut Vec<(u32, DirectoryNode)>,
) -> Result<(), ViewError> {
    for entry in view.list(directory)? {
        let entry = entry?;
        let Node::Directory(below) = entry.node else { continue };
        if levels > 0 {
            descend(view, &below, levels - 1, wanted, found)?;
        } else if let Some(id) =
            std::str::from_utf8(&entry.name).ok().and_then(|name| wanted.get(name.to_lowercase().as_str()))
        {
            found.push((*id, below));
        }
    }
    Ok(())
}

type Todo = (u32, FactsKey, DirectoryNode);

/// What was found in one of them.
type Gathered = (u32, FactsKey, Result<Arc<Facts>, ViewError>);

/// Looks at directories with several threads.
fn gather_all(view: &SnapshotView, todo: &[Todo], shared: &SharedMessages) -> Vec<Gathered> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let threads = threads.min(todo.len().div_ceil(BATCH)).max(1);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut zips = ZipReader::default();
        let mut done = Vec::new();
        loop {
            let from = next.fetch_add(BATCH, std::sync::atomic::Ordering::Relaxed);
            let Some(batch) =
                todo.get(from..todo.len().min(from.saturating_add(BATCH))).filter(|part| !part.is_empty())
            else {
                return done;
            };
            for (account, key, directory) in batch {
                let facts = gather(view, directory, shared, &mut zips);
                done.push((*account, *key, facts.map(Arc::new)));
            }
        }
    };
    std::thread::scope(|scope| {
        // Where no more threads can be had, fewer do it.
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..threads).map_while(start).collect();
        let mut all = work();
        for other in others {
            match other.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

/// An account while what is known of it is gathered.
struct Draft {
    id: u32,
    email: Option<u32>,
    latest: Option<u32>,
    in_accounts: bool,
    /// Full sessions that list it, by place in the list of fulls.
    listed: Vec<(usize, ListedAccount)>,
}

impl Draft {
    fn new(id: u32) -> Draft {
        Draft { id, email: None, latest: None, in_accounts: false, listed: Vec::new() }
    }
}

/// A chain is that of a full session and the sequence numbers it is followed from and to.
type ChainKey = (usize, u64, Option<u64>);

struct Judge<'a> {
    files: &'a Files,
    site: &'a Site,
    fulls: &'a [FullSession],
    /// Most accounts of a session have the same numbers.
    chains: HashMap<ChainKey, Chain>,
}

impl Judge<'_> {
    fn account(&mut self, draft: Draft) -> Account {
        let text = |number: u32| self.files.names.text(number).to_owned();
        let newest_email = draft.listed.last().map(|(_, listed)| listed.email);
        let email = draft.email.or(newest_email).map(text).unwrap_or_default();
        let lower = email.to_lowercase();
        let mut other_emails: Vec<String> =
            draft.listed.iter().map(|(_, listed)| text(listed.email)).filter(|other| *other != lower).collect();
        other_emails.sort_unstable();
        other_emails.dedup();
        let latest = draft.latest.map(text);
        let mut faults = Vec::new();
        let mut fulls: Vec<FullOfAccount> = Vec::new();
        let mut sequences: Vec<Option<u64>> = Vec::new();
        for (at_full, listed) in &draft.listed {
            let full = &self.fulls[*at_full];
            if let Some(fault) = self.failure(full, listed) {
                faults.push(fault);
                continue;
            }
            let (one, sequence) = self.full(full, listed.id, &mut faults);
            fulls.push(one);
            sequences.push(sequence);
        }
        self.chains(&mut fulls, &sequences, &mut faults);
        if let Some(label) = latest.as_ref().filter(|label| !self.has_full(label)) {
            let instead = fulls.iter().rev().find(|full| full.usable);
            let instead = instead.map_or_else(String::new, |full| {
                format!(", instead of which {} must be named", self.label(full.session))
            });
            faults.push(Fault {
                kind: FaultKind::LatestAbsent,
                severity: Severity::Loss,
                session: Some(label.clone()),
                text: format!("accounts.xml names {label} as its newest full, which is missing or invalid{instead}"),
            });
        }
        if !draft.in_accounts && self.site.accounts.as_ref().is_some_and(|accounts| accounts.reading.complete) {
            faults.push(Fault {
                kind: FaultKind::NotInAccounts,
                severity: Severity::Notice,
                session: None,
                text: "accounts.xml does not list it: a restore must name the full session (-lb), or needs an earlier snapshot's accounts.xml"
                    .to_owned(),
            });
        }
        let state = state(&fulls, &faults, self.has_newest_gap(&fulls));
        Account {
            id: text(draft.id),
            email,
            other_emails,
            in_accounts: draft.in_accounts,
            latest,
            state,
            intervals: intervals(&fulls),
            fulls,
            faults,
        }
    }

    fn label(&self, place: usize) -> &str {
        &self.site.sessions[place].label
    }

    /// Returns whether a full of this label is among the sessions that a restore can use.
    fn has_full(&self, label: &str) -> bool {
        self.site.sessions.iter().any(|session| is_candidate(session) && session.label == label)
    }

    /// Returns why a session that lists an account does not hold it.
    fn failure(&self, full: &FullSession, listed: &ListedAccount) -> Option<Fault> {
        let session = &self.site.sessions[full.place];
        let message = full.errors.get(&listed.email).and_then(|at| session.errors.get(*at));
        if listed.status == AccountStatus::Completed && message.is_none() {
            return None;
        }
        let why = match (message, session.state) {
            (Some((_, message)), _) if !message.is_empty() => format!("failed: {message}"),
            (Some(_), _) => "failed".to_owned(),
            (None, SessionState::Aborted) => format!("{}; the session was aborted", listed.status.words()),
            (None, _) => listed.status.words().to_owned(),
        };
        Some(Fault {
            kind: FaultKind::NotBackedUp,
            severity: Severity::Notice,
            session: Some(session.label.clone()),
            text: format!("{} does not have it: {why}", session.label),
        })
    }

    /// Returns what one full session is worth to an account, and the redo sequence number that it goes on from.
    fn full(&self, full: &FullSession, id: u32, faults: &mut Vec<Fault>) -> (FullOfAccount, Option<u64>) {
        let session = &self.site.sessions[full.place];
        let label = &session.label;
        let known = faults.len();
        let mut fault =
            |kind, severity, text| faults.push(Fault { kind, severity, session: Some(label.clone()), text });
        let (mut messages, mut sequence, mut end) = (0, None, None);
        match full.found.get(&id) {
            None => fault(
                FaultKind::DirectoryAbsent,
                Severity::Block,
                format!("{label} lists it but has no directory for it"),
            ),
            Some(Err(reason)) => {
                fault(
                    FaultKind::StoreDamaged,
                    Severity::Block,
                    format!("its directory in {label} cannot be read: {reason}"),
                );
            }
            Some(Ok(facts)) => {
                messages = facts.messages;
                match &facts.meta {
                    Meta::Absent => fault(
                        FaultKind::Unfinished,
                        Severity::Block,
                        format!("its directory in {label} has no meta.xml: it was not finished"),
                    ),
                    Meta::Damaged(reason) => fault(
                        FaultKind::MetaDamaged,
                        Severity::Block,
                        format!("its meta.xml in {label} cannot be used: {reason}"),
                    ),
                    Meta::Read { redo_sequence, end: ended, remark } => {
                        (sequence, end) = (Some(*redo_sequence), *ended);
                        if let Some(remark) = remark {
                            let text =
                                format!("its meta.xml in {label} is damaged, and Zimbra may refuse it: {remark}");
                            fault(FaultKind::MetaDamaged, Severity::Loss, text);
                        }
                    }
                }
                // Of a directory that was not finished anything may be missing.
                if facts.meta != Meta::Absent {
                    losses(facts, label, &mut fault);
                }
            }
        }
        let new = &faults[known..];
        let usable = new.iter().all(|fault| fault.severity < Severity::Block);
        let own = session.start.max(end.or(session.end).unwrap_or(session.start));
        let one = FullOfAccount {
            session: full.place,
            start: session.start,
            reach: own,
            usable,
            complete: new.is_empty(),
            messages,
            chain: Chain::default(),
        };
        (one, sequence)
    }

    /// Follows the redo logs behind each full, and reports what is missing where it matters.
    fn chains(&mut self, fulls: &mut [FullOfAccount], sequences: &[Option<u64>], faults: &mut Vec<Fault>) {
        let mut gaps: Vec<(SequenceRange, usize)> = Vec::new();
        for at in 0..fulls.len() {
            let Some(first) = sequences[at].filter(|_| fulls[at].usable) else { continue };
            // From where a newer full that can be used goes on, its own logs count.
            let newer = (at + 1..fulls.len()).find(|newer| fulls[*newer].usable);
            let until = newer.and_then(|newer| sequences[newer]);
            let (session, start) = (fulls[at].session, fulls[at].start);
            let redo = &self.site.redo;
            let chain = self.chains.entry((session, first, until)).or_insert_with(|| redo.chain(first, start, until));
            fulls[at].reach = fulls[at].reach.max(chain.reach.unwrap_or(Timestamp::MIN));
            fulls[at].chain = chain.clone();
            for gap in &chain.gaps {
                if !gaps.iter().any(|(known, _)| known == gap) {
                    gaps.push((*gap, session));
                }
            }
        }
        for (gap, session) in gaps {
            let label = self.label(session);
            let (noun, verb) = if gap.first == gap.last { ("log", "is") } else { ("logs", "are") };
            faults.push(Fault {
                kind: FaultKind::RedoGap,
                severity: Severity::Block,
                session: Some(label.to_owned()),
                text: format!("redo {noun} {gap} {verb} missing behind {label}: {}", self.where_named(gap)),
            });
        }
    }

    /// Returns which session should hold logs that are missing.
    fn where_named(&self, gap: SequenceRange) -> String {
        let mut names: Vec<&str> = Vec::new();
        for session in &self.site.sessions {
            if session.redo_absent.iter().any(|absent| absent.first <= gap.last && gap.first <= absent.last) {
                names.push(&session.label);
            }
        }
        match names.as_slice() {
            [] => "no session in the snapshot names them".to_owned(),
            names => format!("{} should hold them", names.join(", ")),
        }
    }

    /// Returns whether the redo logs behind the newest usable full have a gap.
    fn has_newest_gap(&self, fulls: &[FullOfAccount]) -> bool {
        fulls.iter().rev().find(|full| full.usable).is_some_and(|full| !full.chain.gaps.is_empty())
    }
}

/// Returns what is missing in a directory that was finished.
fn losses(facts: &Facts, label: &str, fault: &mut impl FnMut(FaultKind, Severity, String)) {
    let loss = Severity::Loss;
    if !facts.has_database {
        fault(
            FaultKind::DatabaseAbsent,
            Severity::Block,
            format!("its directory in {label} has no dump of its tables (db/)"),
        );
    }
    if !facts.has_ldap {
        fault(FaultKind::LdapAbsent, loss, format!("its directory in {label} has no ldap.xml"));
    }
    if facts.unreadable.count > 0 {
        let text = format!("the source could not read, in {label}: {}", facts.unreadable.described());
        fault(FaultKind::Unreadable, loss, text);
    }
    if facts.bad_zips.count > 0 {
        fault(FaultKind::ZipDamaged, loss, format!("damaged zips in {label}: {}", facts.bad_zips.described()));
    }
    if facts.missing.count > 0 {
        let noun = if facts.missing.count == 1 { "shared message is" } else { "shared messages are" };
        let text = format!("{} {noun} missing in {label}: {}", facts.missing.count, facts.missing.described());
        fault(FaultKind::SharedMissing, loss, text);
    }
}

/// Judges an account by its newest fulls.
fn state(fulls: &[FullOfAccount], faults: &[Fault], has_newest_gap: bool) -> AccountState {
    let Some(best) = fulls.iter().rposition(|full| full.usable) else { return AccountState::Lost };
    let misled = faults.iter().any(|fault| fault.kind == FaultKind::LatestAbsent);
    if has_newest_gap {
        AccountState::Behind
    } else if best + 1 == fulls.len() && fulls[best].complete && !misled {
        AccountState::Whole
    } else {
        AccountState::Incomplete
    }
}
