//! The shell on the remote host: started once, it takes one command after the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};

use super::AgentlessOptions;
use crate::cause::{Cause, Explained, NoThread};
use crate::remote::client::{ConnectError, HANDSHAKE, Stop, WireCounters};
use crate::remote::protocol::MAGIC;
use crate::remote::transport::deadline::Deadline;
use crate::remote::transport::least_rate::LeastRate;
use crate::remote::transport::{Connection, Control, Transport, printed, quoted, read_to_mark};
use crate::source::tree::SourceError;

/// What the shell says when it is ready, or why it is not.
const GREETING: &[u8] = b"ZMRPLAIN1 ";
/// Begins the line behind a command's output.
const END: &[u8] = b"ZMREND ";
/// The longest line: a path with every byte as an escape, and what stands around it.
const LINE_MAX_BYTES: usize = 640 << 10;
/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// The script. Its words are few, and nothing that it reads is evaluated: all that a hostile *replica* could do is to read below the root.
///
/// `head -c` takes exactly the names that belong to a command from stdin. What a command says on stderr is kept in `e`, with its exit code in the last line,
/// and follows the end of its answer. A `tar` that did not come to its end leaves an archive without one, so the shell ends as well.
const SCRIPT: &str = r#"LC_ALL=C; export LC_ALL; unset TAR_OPTIONS POSIXLY_CORRECT
renice -n 10 -p $$ >/dev/null 2>&1; ionice -c 2 -n 7 -p $$ >/dev/null 2>&1
CDPATH= cd -P -- "$R" 2>/dev/null || { ls -d -- "$R/." >/dev/null; echo "ZMRPLAIN1 root"; exit 1; }
case $(tar --version 2>/dev/null) in *"GNU tar"*) ;; *) echo "ZMRPLAIN1 tar"; exit 1;; esac
case $(find --version 2>/dev/null) in *"GNU find"*) ;; *) echo "ZMRPLAIN1 find"; exit 1;; esac
F='%y %m %U %G %n %s %T@ %C@ %i %D %b %p\0'; export F
t() { tar --no-recursion --hard-dereference --format=pax --sparse --xattrs '--xattrs-include=*' --numeric-owner --no-unquote --quoting-style=escape -b 20 --null "$@"; }
c_scan() { find . $n -printf "$F" </dev/null; }
c_stat() { head -c "$n" | xargs -0 -r sh -c 'exec find "$@" -maxdepth 0 \( -readable -printf "r " -o -printf "- " \) -printf "$F"' sh; }
c_look() { head -c "$n" | t -cvvf /dev/null -T -; }
c_tar() { head -c "$n" | t -cf - -T -; }
c_user() { head -c "$n" | xargs -r getent passwd; }
c_group() { head -c "$n" | xargs -r getent group; }
l='
'
e=$({ t -cf /dev/null -T /dev/null 2>&1; echo "code $?"; } | head -c 10000)
case $e in *tar:\ *) o=;; *"code 0") o=1;; *) o=;; esac
[ -n "$o" ] || { printf '%s\n' "$e" >&2; echo "ZMRPLAIN1 options"; exit 1; }
echo "ZMRPLAIN1 ok"
while read -r w n; do
case $w in scan|stat|look|tar|user|group) ;; *) exit 1;; esac
{ e=$({ "c_$w" 2>&1 1>&3 3>&-; echo "code $?"; } | tail -c 4000000); } 3>&1
case $w$e in
tar*"Error is not recoverable: exiting now${l}code "*) printf '%s\n' "$e" >&2; exit 2;;
tar*"code "[012]) ;;
tar*) printf '%s\n' "$e" >&2; exit 2;;
scan*|stat*) printf 'E\0';;
esac
printf 'ZMREND %s %s\n%s' "$w" "${#e}" "$e"
done"#;
/// The script keeps so many bytes of what a command says on stderr.
pub(super) const WORDS_MAX_BYTES: usize = 4_000_000;

/// Returns the command that starts the script, which is the first that it reads from stdin: the user's own shell, whichever that is, sees no more than this
/// line. `csh` takes no line ends within quotes and no exclamation marks, `fish` no backslashes.
fn starting(script: &str) -> String {
    format!("exec sh -c 'eval \"$(head -c {})\"'", script.len())
}

/// How often a read that waits looks whether the run is to end.
const TICK: Duration = Duration::from_millis(500);

/// Counts what comes, and takes no more than may come.
struct Metered {
    inner: Box<dyn Read + Send>,
    counters: Arc<WireCounters>,
    bytes_per_second: u64,
    /// How long the remote host may be waited for while nothing comes.
    idle_timeout: Duration,
    least_rate: LeastRate,
    /// Bytes that came on this connection.
    came: u64,
    interrupted: Stop,
    /// When the bytes taken so far may all have come.
    due: Instant,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut most = buffer.len();
        if self.bytes_per_second > 0 {
            let now = Instant::now();
            std::thread::sleep(self.due.saturating_duration_since(now));
            self.due = self.due.max(now);
            // Naps stay short, also at the lowest rate.
            most = most.min((self.bytes_per_second / 4).max(256) as usize);
        }
        let started = Instant::now();
        let count = loop {
            match self.inner.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    let waited = started.elapsed();
                    if (self.interrupted)() {
                        return Err(io::Error::other("the run is to end"));
                    }
                    if waited >= self.idle_timeout {
                        let message = format!("nothing came for {} s", waited.as_secs());
                        return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                    }
                }
                answer => break answer?,
            }
        };
        self.came += count as u64;
        if let Some(reason) = self.least_rate.add(started.elapsed(), self.came) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
        self.counters.received_bytes.fetch_add(count as u64, Ordering::Relaxed);
        if self.bytes_per_second > 0 {
            self.due += Duration::from_secs_f64(count as f64 / self.bytes_per_second as f64);
        }
        Ok(count)
    }
}

/// The running shell.
pub(super) struct Shell {
    input: BufReader<Metered>,
    out: Sender<Vec<u8>>,
    control: Arc<dyn Control>,
    counters: Arc<WireCounters>,
    interrupted: Stop,
    /// The line behind an answer of lines, until [`Shell::end`] takes it.
    ended: Option<Vec<u8>>,
}

impl Shell {
    /// Starts the shell in the root.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(super) fn start(
        transport: &mut dyn Transport,
        options: &AgentlessOptions,
        counters: &Arc<WireCounters>,
    ) -> Result<Shell, ConnectError> {
        let host = transport.host().to_owned();
        let root = match options.root.as_str() {
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            // `cd -` would go somewhere else.
            relative => format!("./{relative}"),
        };
        let script = format!("R={}\n{SCRIPT}", quoted(&root));
        let Connection { input, mut output, control } = transport.run(&starting(&script))?;
        // That it cannot be written shows at the next read.
        let _ = output.write_all(script.as_bytes()).and_then(|()| output.flush());
        counters.sent_bytes.fetch_add(script.len() as u64, Ordering::Relaxed);
        // A shell sends no signs of life: how long it may be silent is for the user to say.
        control.set_silence(TICK);
        let metered = Metered {
            inner: input,
            counters: Arc::clone(counters),
            bytes_per_second: options.bytes_per_second,
            // Until the shell has greeted, its deadline counts.
            idle_timeout: Duration::MAX,
            least_rate: LeastRate::new(options.idle_timeout),
            came: 0,
            interrupted: Arc::clone(&options.interrupted),
            due: Instant::now(),
        };
        let mut input = BufReader::with_capacity(BUFFER_BYTES, metered);
        let broken = |reason: Cause| ConnectError::Broken { host: host.clone(), reason };
        let deadline = Deadline::start(Arc::clone(&control), HANDSHAKE.min(options.idle_timeout))
            .map_err(|error| broken(NoThread(error).into()))?;
        let mut seen = Vec::new();
        let mark = read_to_mark(&mut deadline.watch(&mut input), &[GREETING, &MAGIC], &mut seen);
        let greeted = mark.and_then(|mark| if mark == 0 { until(&mut input, b'\n', 64).map(Some) } else { Ok(None) });
        let answer = match greeted {
            Ok(Some(answer)) => answer,
            // An agent greets.
            Ok(None) => {
                control.abort();
                return Err(ConnectError::Refused {
                    message: format!(
                        "The key for {host} is restricted to an agent (command= in authorized_keys there), so it gets no shell. Leave out --agentless, or use another key"
                    ),
                });
            }
            Err(error) => {
                if let Some(reason) = deadline.passed("the greeting of its shell") {
                    return Err(broken(reason.into()));
                }
                let words = control.exit_info();
                if let Some(error) = words.lasting(&host) {
                    return Err(error.into());
                }
                let seen = printed(&seen);
                return Err(match words.code {
                    Some(255) | None => broken(Explained::new(error, format!("; {words}{seen}")).into()),
                    Some(_) => ConnectError::NoAgent {
                        message: format!(
                            "No shell can be used on {host} ({words}{seen}); --agentless needs one, with GNU find and tar"
                        ),
                    },
                });
            }
        };
        drop(deadline);
        input.get_mut().idle_timeout = options.idle_timeout;
        let tool = |name: &str| ConnectError::NoAgent {
            message: format!("{host} has no GNU {name}, which --agentless needs. Install it there, or use the agent"),
        };
        match answer.as_slice() {
            b"ok" => {}
            b"root" => {
                let words = control.exit_info();
                // What ls says of it.
                let reason = words.stderr.trim().rsplit(": ").next().unwrap_or_default();
                return Err(ConnectError::Refused {
                    message: format!(
                        "Cannot scan {} on {host}: {reason}. Check the path, and that this user may read it",
                        options.root
                    ),
                });
            }
            b"options" => {
                let words = control.exit_info();
                return Err(ConnectError::NoAgent {
                    message: format!(
                        "The tar on {host} lacks features that --agentless needs, such as extended attributes ({words}). Install another there, or use the agent"
                    ),
                });
            }
            b"tar" => return Err(tool("tar")),
            b"find" => return Err(tool("find")),
            _ => return Err(broken("its shell gave no sensible answer".into())),
        }
        // A thread of its own: while the remote host answers it need not read, and waiting for it here would be waiting forever.
        let (out, outgoing) = unbounded::<Vec<u8>>();
        let sent = Arc::clone(counters);
        std::thread::Builder::new()
            .name("shell-write".to_owned())
            .spawn(move || {
                while let Ok(bytes) = outgoing.recv() {
                    sent.sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    // That it cannot be written shows at the next read.
                    if output.write_all(&bytes).and_then(|()| output.flush()).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| broken(NoThread(error).into()))?;
        let interrupted = Arc::clone(&options.interrupted);
        Ok(Shell { input, out, control, counters: Arc::clone(counters), interrupted, ended: None })
    }

    /// Gives a command with one plain argument.
    pub(super) fn command(&self, word: &str, argument: &str) {
        self.counters.waits.fetch_add(1, Ordering::Relaxed);
        // A shell that is gone shows at the next read.
        let _ = self.out.send(format!("{word} {argument}\n").into_bytes());
    }

    /// Gives a command with its stdin.
    pub(super) fn command_with(&self, word: &str, stdin: Vec<u8>) {
        self.command(word, &stdin.len().to_string());
        let _ = self.out.send(stdin);
    }

    /// Gives a command with paths, unless there are none; returns how many.
    pub(super) fn command_on<'p>(&self, word: &str, paths: impl Iterator<Item = &'p [u8]>) -> usize {
        let (mut names, mut count) = (Vec::new(), 0);
        for path in paths {
            // Never begins with a dash.
            names.extend_from_slice(if path.is_empty() { b"." } else { b"./" });
            names.extend_from_slice(path);
            names.push(0);
            count += 1;
        }
        if count > 0 {
            self.command_with(word, names);
        }
        count
    }

    /// Reads up to a NUL, which is not part of the answer.
    pub(super) fn record(&mut self, most: usize) -> Result<Vec<u8>, SourceError> {
        until(&mut self.input, 0, most).map_err(|error| self.failed(error))
    }

    /// Reads a line of output; `None` if it is the one behind it, and [`Shell::end`] is due.
    pub(super) fn line(&mut self) -> Result<Option<Vec<u8>>, SourceError> {
        let line = until(&mut self.input, b'\n', LINE_MAX_BYTES).map_err(|error| self.failed(error))?;
        if line.starts_with(END) {
            self.ended = Some(line);
            return Ok(None);
        }
        Ok(Some(line))
    }

    /// Reads the line behind the output of a command, and returns what the command said on stderr, with its exit code in the last line.
    pub(super) fn end(&mut self, word: &str) -> Result<Vec<u8>, SourceError> {
        self.read_end(word).map_err(|error| self.failed(error))
    }

    fn read_end(&mut self, word: &str) -> io::Result<Vec<u8>> {
        let line = match self.ended.take() {
            Some(line) => line,
            None => until(&mut self.input, b'\n', LINE_MAX_BYTES)?,
        };
        let length = std::str::from_utf8(&line).ok().and_then(|line| {
            let (said, length) = line.strip_prefix("ZMREND ")?.split_once(' ')?;
            length.parse().ok().filter(|length| said == word && *length <= WORDS_MAX_BYTES)
        });
        let mut words = vec![0; length.ok_or_else(|| breach("something behind the end of an answer"))?];
        self.input.read_exact(&mut words)?;
        Ok(words)
    }

    /// Turns a failed read into why the source is lost, or what it did wrong.
    pub(super) fn failed(&self, error: io::Error) -> SourceError {
        match error.kind() {
            io::ErrorKind::InvalidData => {
                SourceError::Protocol { reason: format!("it sent {error} where its find and tar never would").into() }
            }
            io::ErrorKind::UnexpectedEof => SourceError::Lost { reason: self.control.exit_info().to_string().into() },
            _ => SourceError::Lost { reason: error.into() },
        }
    }

    /// Makes the error for what no honest host sends; `what` completes "it sent".
    pub(super) fn breach(&self, what: &str) -> SourceError {
        self.failed(breach(what))
    }

    /// Fails if the run is to end.
    pub(super) fn check_interrupt(&self) -> Result<(), SourceError> {
        if (self.interrupted)() { Err(SourceError::Lost { reason: "the run was interrupted".into() }) } else { Ok(()) }
    }

    /// Returns the counters of the connection.
    pub(super) fn counters(&self) -> &WireCounters {
        &self.counters
    }
}

impl Read for Shell {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.control.abort();
    }
}

/// Makes the error for bytes that no honest host sends; `what` completes "it sent".
pub(super) fn breach(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Reads up to a byte, which is taken and not returned.
fn until(input: &mut impl BufRead, end: u8, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(most as u64 + 1).read_until(end, &mut bytes)?;
    match bytes.pop() {
        Some(last) if last == end => Ok(bytes),
        _ if bytes.len() >= most => Err(breach("a record or line that is too long")),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Shows the end of what a command said.
pub(super) fn shown(said: &[u8]) -> String {
    said[said.len().saturating_sub(1000)..].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_bounded() {
        assert_eq!(until(&mut &b"abc\0d"[..], 0, 3).unwrap(), b"abc");
        assert_eq!(until(&mut &b"abcd\0"[..], 0, 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(until(&mut &b"abc"[..], 0, 5).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(until(&mut &b""[..], 0, 5).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let endless = &mut BufReader::new(io::repeat(b'x'));
        assert_eq!(until(endless, 0, 5000).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
