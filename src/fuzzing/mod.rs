//! What decodes bytes that somebody else may have written, one function for each, for the harness in `fuzz/`. Compiled with the feature `fuzzing` only.
//!
//! A target must end, whatever the bytes are, without a panic and within the bounds of memory and time that `scripts/fuzz` sets. Where the decoder has an
//! encoder, what was decoded must come back the same after another round. Checksums are made to fit: no mutation would get past them.
//!
//! | target | input |
//! | --- | --- |
//! | those of `wire` | what comes over a connection |
//! | those of `stored` | what lies in a store: rows, objects, commit files, checkpoints, packs, caches |
//! | those of `texts` | files of the tree and of the system: zips, messages, XML, known hosts; names |

pub(crate) mod driver;
mod stored;
mod texts;
mod wire;

use crate::remote::agentless::fuzzing as agentless;
use crate::remote::client::fuzzing as client;
use crate::zimbra::fuzzing as zimbra;

/// One decoder.
pub struct Target {
    /// Its name, which is also that of the directory of its inputs.
    pub name: &'static str,
    /// Decodes the bytes; panics if it is wrong.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    // Connections.
    Target { name: "agent_stream", run: client::agent },
    Target { name: "events", run: wire::events },
    Target { name: "frames", run: wire::frames },
    Target { name: "handshake", run: wire::handshake },
    Target { name: "listing", run: wire::listing },
    Target { name: "messages", run: wire::messages },
    Target { name: "requests", run: wire::requests },
    Target { name: "shell_find", run: agentless::find },
    Target { name: "shell_stream", run: agentless::shell },
    Target { name: "shell_tar", run: agentless::tar },
    Target { name: "shell_words", run: agentless::words },
    // The store.
    Target { name: "block_cache", run: client::blocks },
    Target { name: "checkpoint", run: stored::checkpoint },
    Target { name: "chunk_page", run: stored::chunk_page },
    Target { name: "codec", run: stored::codec },
    Target { name: "commit", run: stored::commit },
    Target { name: "config", run: stored::config },
    Target { name: "content", run: stored::content },
    Target { name: "directory_index", run: stored::directory_index },
    Target { name: "directory_page", run: stored::directory_page },
    Target { name: "directory_root", run: stored::directory_root },
    Target { name: "group_page", run: stored::group_page },
    Target { name: "inode_cache", run: stored::inode_cache },
    Target { name: "ledger", run: zimbra::sealed },
    Target { name: "link_counts", run: stored::link_counts },
    Target { name: "object", run: stored::object },
    Target { name: "pack", run: stored::pack },
    Target { name: "rows", run: stored::rows },
    Target { name: "snapshot_record", run: stored::snapshot_record },
    // Files and names.
    Target { name: "cut_message", run: texts::cut_message },
    Target { name: "cut_zip", run: texts::cut_zip },
    Target { name: "known_hosts", run: texts::known_hosts },
    Target { name: "names", run: texts::names },
    Target { name: "xml", run: texts::xml },
];
