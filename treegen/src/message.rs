//! Messages as mail servers and mail programs compose them.
//!
//! A message is a pure function of the seed and its key. Sizes are log-normal; large messages are large because of
//! attachments, and popular attachments travel in many messages, between different headers and boundaries.

use std::io::Write as _;

use crate::clock;
use crate::mailbox::{Mail, Site, domain};
use crate::rng::{Rng, key};
use crate::words::{Language, Tables};

/// No message is larger: the usual limit of mail servers.
const LARGEST_BYTES: f64 = 25_000_000.0;
/// Below this mean size messages get few headers and no HTML, so that the mean can be met.
const SLIM_BYTES: u64 = 4_000;
/// Percentage of attachments that come from the pool of popular ones.
const POPULAR_PERCENT: f64 = 52.0;
/// Uses of a popular attachment, on average.
const USES: f64 = 6.0;

/// Composes messages; keeps buffers between them.
#[derive(Debug)]
pub struct Composer<'a> {
    site: &'a Site,
    tables: &'a Tables,
    /// Attachment before encoding.
    raw: Vec<u8>,
    /// Plain text, which the HTML part repeats.
    text: Vec<u8>,
}

/// What a message shall be, drawn before it is composed.
#[derive(Debug, Clone, Copy)]
struct Plan {
    size: usize,
    attachment: bool,
}

/// An attachment: everything about it follows from its key.
#[derive(Debug, Clone, Copy)]
struct Attachment {
    key: u64,
    raw_size: usize,
}

impl<'a> Composer<'a> {
    /// Prepares a composer for the messages of a site.
    pub fn new(site: &'a Site, tables: &'a Tables) -> Self {
        Self { site, tables, raw: Vec::new(), text: Vec::new() }
    }

    fn sigma(&self) -> f64 {
        // A mean of four times the median needs sigma = sqrt(2 ln 4). Small messages vary less, since headers have a least size.
        if self.site.config.mean_size_bytes >= SLIM_BYTES { 1.665 } else { 0.5 }
    }

    fn plan(&self, rng: &mut Rng) -> Plan {
        let sigma = self.sigma();
        let z = rng.normal();
        let mean = self.site.config.mean_size_bytes as f64;
        let size = (mean * (sigma * z - sigma * sigma / 2.0).exp()).min(LARGEST_BYTES);
        // Attachments go to the larger messages, but not only: the noise blurs the border.
        let share = self.site.config.attachment_percent / 100.0;
        let blurred = (z + 0.5 * rng.normal()) / 1.25f64.sqrt();
        let attachment = share > 0.0 && (blurred > upper_quantile(share) || size > 400_000.0);
        Plan { size: size as usize, attachment }
    }

    /// Returns the planned size of a message, which its real size is close to.
    pub fn planned_size(&self, mail: Mail) -> usize {
        self.plan(&mut Rng::new(&[self.site.mail_key(mail)])).size
    }

    /// Composes a message that arrived before step `born` into `out`, which is cleared first.
    pub fn compose(&mut self, mail: Mail, born: u32, out: &mut Vec<u8>) {
        out.clear();
        let mut rng = Rng::new(&[self.site.mail_key(mail)]);
        let plan = self.plan(&mut rng);
        let slim = self.site.config.mean_size_bytes < SLIM_BYTES;
        let tables = self.tables;
        let organisation = rng.zipf(tables.styles.len() as u64) as usize;
        let language = &tables.languages[organisation % 2];
        self.headers(mail, born, slim, language, &mut rng, out);
        let attachment = plan.attachment.then(|| self.attachment(plan.size.saturating_sub(out.len() + 1500), &mut rng));
        let used = out.len() + attachment.map_or(0, |a| a.raw_size / 57 * 78 + 600);
        // The text beside a large attachment is short, whatever the plan has left.
        let body = plan.size.saturating_sub(used).clamp(if slim { 60 } else { 300 }, 400_000);
        let boundary =
            format!("----=_Part_{}_{:x}.{}", rng.below(1 << 24), rng.bits(), rng.range(1_200_000_000, 1_900_000_000));
        if let Some(attachment) = attachment {
            put(out, format_args!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\r\n\r\n--{boundary}\r\n"));
            self.body(body, organisation, language, false, &mut rng, out);
            put(out, format_args!("\r\n--{boundary}\r\n"));
            self.attach(attachment, out);
            put(out, format_args!("--{boundary}--\r\n"));
        } else {
            self.body(body, organisation, language, slim, &mut rng, out);
        }
    }

    fn headers(&self, mail: Mail, born: u32, slim: bool, language: &Language, rng: &mut Rng, out: &mut Vec<u8>) {
        let tables = self.tables;
        let date_ms = self.site.delivered_ms(mail, born);
        let sender = &tables.people[rng.zipf(tables.people.len() as u64) as usize];
        let (to_name, to) = match mail {
            Mail::Private(account, _) => {
                let account = &self.site.accounts[account as usize];
                (account.name.as_str(), account.email.to_lowercase())
            }
            Mail::Shared(..) => {
                ("Staff", format!("{}@example.com", rng.pick(&["all", "team", "projects", "info", "sales"])))
            }
        };
        let from_domain = sender.email.split('@').next_back().unwrap_or("example.org");
        if !slim {
            let envelope = &sender.email;
            put(out, format_args!("Return-Path: {envelope}\r\n"));
            let mut hop_ms = date_ms;
            for hop in 0..rng.range(2, 5) {
                let (by, from) = match hop {
                    0 => ("mail.example.com".to_owned(), "localhost (localhost.localdomain [127.0.0.1])".to_owned()),
                    1 => (
                        "localhost (mail.example.com [127.0.0.1])".to_owned(),
                        "mx1.example.com (mx1.example.com [10.1.0.7])".to_owned(),
                    ),
                    n => (
                        format!("mx{n}.{from_domain}"),
                        format!(
                            "out-{}.{from_domain} ([{}.{}.{}.{}])",
                            rng.below(90),
                            rng.range(11, 220),
                            rng.below(256),
                            rng.below(256),
                            rng.below(256)
                        ),
                    ),
                };
                let (id, stamp) = (rng.bits() >> 20, clock::mail_date(hop_ms));
                put(
                    out,
                    format_args!(
                        "Received: from {from}\r\n\tby {by} (Postfix) with ESMTP id {id:011X}\r\n\tfor <{to}>; {stamp} (UTC)\r\n"
                    ),
                );
                hop_ms -= rng.range(200, 4_000) as i64;
            }
            let (score, hits) = (rng.below(60), rng.below(3));
            put(
                out,
                format_args!(
                    "X-Virus-Scanned: amavisd-new at example.com\r\nX-Spam-Flag: NO\r\nX-Spam-Score: -{}.{}\r\nX-Spam-Status: No, score=-{}.{} tagged_above=-10 required=6.6\r\n\ttests=[BAYES_0{hits}=-1.9, DKIM_SIGNED=0.1, DKIM_VALID=-0.1,\r\n\tHTML_MESSAGE=0.001] autolearn=ham\r\n",
                    score / 10,
                    score % 10,
                    score / 10,
                    score % 10
                ),
            );
            put(
                out,
                format_args!(
                    "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d={from_domain}; s=s{}; t={};\r\n\th=from:to:subject:date:message-id:mime-version; bh=",
                    2020 + date_ms % 5,
                    date_ms / 1000
                ),
            );
            let mut bytes = Vec::new();
            rng.noise(&mut bytes, 32);
            tables.base64(&bytes, out);
            out.extend_from_slice(b";\r\n\tb=");
            bytes.clear();
            rng.noise(&mut bytes, 256);
            for (line, part) in bytes.chunks(51).enumerate() {
                if line > 0 {
                    out.extend_from_slice(b"\r\n\t ");
                }
                tables.base64(part, out);
            }
            out.extend_from_slice(b"\r\n");
        }
        put(
            out,
            format_args!(
                "Date: {}\r\nFrom: {} <{}>\r\nTo: {to_name} <{to}>\r\nSubject: ",
                clock::mail_date(date_ms),
                sender.name,
                sender.email
            ),
        );
        out.extend_from_slice(rng.pick(&["", "", "Re: ", "AW: ", "Fwd: "]).as_bytes());
        subject(language, rng, out);
        put(
            out,
            format_args!(
                "Message-ID: <{:x}.{}.{}@{from_domain}>\r\nMIME-Version: 1.0\r\n",
                rng.bits(),
                rng.below(100_000),
                date_ms / 1000
            ),
        );
        if !slim {
            if rng.chance(55.0) {
                let reference = rng.bits();
                put(
                    out,
                    format_args!(
                        "In-Reply-To: <{reference:x}@example.com>\r\nReferences: <{reference:x}@example.com>\r\n"
                    ),
                );
            }
            let mailer = rng.pick(&[
                "Zimbra 7.2.7_GA_2942 (ZimbraWebClient - FF3.0 (Win)/7.2.7_GA_2942)",
                "Microsoft Outlook 16.0",
                "Apple Mail (2.3696.120.41.1.1)",
                "Mozilla Thunderbird 102.4",
            ]);
            put(
                out,
                format_args!(
                    "X-Mailer: {mailer}\r\nX-Originating-IP: [10.{}.{}.{}]\r\n",
                    rng.below(4),
                    rng.below(256),
                    rng.below(256)
                ),
            );
        }
    }

    /// Appends the text part, or text and HTML as alternatives.
    fn body(
        &mut self,
        size: usize,
        organisation: usize,
        language: &Language,
        slim: bool,
        rng: &mut Rng,
        out: &mut Vec<u8>,
    ) {
        let plain_only = slim || size < 2_500 || rng.chance(25.0);
        const PLAIN: &[u8] = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n";
        if plain_only {
            out.extend_from_slice(PLAIN);
            paragraphs(language, rng, size, b"", b"\r\n", out);
            if size > 1_500 {
                out.extend_from_slice(&self.tables.footers[organisation]);
            }
            return;
        }
        let style = &self.tables.styles[organisation];
        let footer = &self.tables.footers[organisation];
        // The text stands twice, and the markup around it takes a quarter.
        let text_size = size.saturating_sub(style.len() + 2 * footer.len() + 500).max(400) * 2 / 5;
        let boundary = format!("----=_Alt_{:x}_{}", rng.bits(), rng.below(10_000));
        put(out, format_args!("Content-Type: multipart/alternative; boundary=\"{boundary}\"\r\n\r\n--{boundary}\r\n"));
        out.extend_from_slice(PLAIN);
        self.text.clear();
        let mut text = std::mem::take(&mut self.text);
        let mut ends = Vec::new();
        while text.len() < text_size {
            let len = (rng.range(150, 900) as usize).min(text_size - text.len()).max(60);
            language.paragraph(rng, &mut text, len);
            ends.push(text.len());
            text.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(&text);
        out.extend_from_slice(footer);
        put(
            out,
            format_args!(
                "\r\n--{boundary}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n<html xmlns=\"http://www.w3.org/TR/REC-html40\"><head><meta http-equiv=\"Content-Type\" content=\"text/html; charset=utf-8\">\r\n"
            ),
        );
        out.extend_from_slice(style);
        out.extend_from_slice(
            b"</head><body lang=\"EN-GB\" link=\"#0563C1\" vlink=\"#954F72\">\r\n<div class=\"WordSection1\">\r\n",
        );
        let mut start = 0;
        for end in ends {
            out.extend_from_slice(
                b"<p class=\"MsoNormal\"><span style=\"font-size:11.0pt;font-family:&quot;Calibri&quot;,sans-serif\">",
            );
            out.extend_from_slice(&text[start..end]);
            out.extend_from_slice(b"<o:p></o:p></span></p>\r\n");
            start = end + 2;
        }
        out.extend_from_slice(b"<hr size=\"1\"><p class=\"MsoFooter\">");
        out.extend_from_slice(footer);
        put(out, format_args!("</p></div></body></html>\r\n\r\n--{boundary}--\r\n"));
        self.text = text;
    }

    /// Chooses an attachment of about `encoded_size` bytes: a popular one or a new one.
    fn attachment(&self, encoded_size: usize, rng: &mut Rng) -> Attachment {
        let seed = self.site.config.seed;
        let encoded_size = encoded_size.max(1_400);
        if !rng.chance(POPULAR_PERCENT) {
            return Attachment { key: rng.bits(), raw_size: encoded_size * 57 / 78 };
        }
        // Popular attachments are grouped by size, half an octave each, so that the sizes of messages stay as planned.
        let bucket = ((encoded_size as f64).log2() * 2.0).floor();
        let (low, high) = ((bucket / 2.0).exp2(), ((bucket + 1.0) / 2.0).exp2());
        let sigma = self.sigma();
        let median = self.site.config.mean_size_bytes as f64 * (-sigma * sigma / 2.0).exp();
        // Density of the log-normal distribution at the bucket, times its width.
        let z = ((low * high).sqrt() / median).ln() / sigma;
        let in_bucket = (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt() * (high / low).ln() / sigma;
        let uses = self.site.expected_messages() * in_bucket * POPULAR_PERCENT / 100.0;
        let pool = (uses / USES).ceil().max(1.0) as u64;
        let number = rng.zipf(pool);
        let key = key(&[seed, domain::ATTACHMENT, bucket as u64, number]);
        let mut own = Rng::new(&[key, 1]);
        Attachment { key, raw_size: ((low + own.unit() * (high - low)) as usize) * 57 / 78 }
    }

    /// Appends an attachment as a MIME part.
    fn attach(&mut self, attachment: Attachment, out: &mut Vec<u8>) {
        let mut rng = Rng::new(&[attachment.key, 2]);
        let language = &self.tables.languages[rng.index(2)];
        let kind = rng.below(100);
        let (mime, extension) = match kind {
            0..30 => ("application/pdf", "pdf"),
            30..55 => ("image/jpeg", "jpg"),
            55..75 => ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "docx"),
            75..90 => ("application/msword", "doc"),
            _ => ("text/csv", "csv"),
        };
        let name =
            format!("{}_{}_{}.{extension}", language.word(&mut rng), language.word(&mut rng), rng.range(1, 3000));
        put(
            out,
            format_args!(
                "Content-Type: {mime}; name=\"{name}\"\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename=\"{name}\"\r\n\r\n"
            ),
        );
        let raw = &mut self.raw;
        raw.clear();
        let size = attachment.raw_size;
        match extension {
            "pdf" => {
                raw.extend_from_slice(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n");
                let mut object = 1;
                while raw.len() < size {
                    let stream = (rng.range(2_000, 40_000) as usize).min(size - raw.len());
                    put(
                        raw,
                        format_args!(
                            "{object} 0 obj\n<< /Type /Page /Parent 1 0 R /Resources << /Font << /F1 {} 0 R >> >> /Contents {} 0 R /MediaBox [0 0 595 842] >>\nendobj\n{} 0 obj\n<< /Filter /FlateDecode /Length {stream} >>\nstream\n",
                            object + 3,
                            object + 1,
                            object + 1
                        ),
                    );
                    rng.noise(raw, stream);
                    raw.extend_from_slice(b"\nendstream\nendobj\n");
                    object += 2;
                }
            }
            "jpg" => {
                raw.extend_from_slice(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x01\x00\x48\x00\x48\x00\x00");
                rng.noise(raw, size.saturating_sub(22));
                raw.extend_from_slice(b"\xff\xd9");
            }
            "docx" => {
                raw.extend_from_slice(b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00");
                rng.noise(raw, size.saturating_sub(14));
            }
            "doc" => {
                raw.extend_from_slice(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1");
                while raw.len() < size {
                    // Old office files: text, tables of numbers, empty sectors.
                    let left = size - raw.len();
                    language.paragraph(&mut rng, raw, left.min(3_000));
                    rng.noise(raw, left.min(400));
                    raw.resize(raw.len() + left.min(512), 0);
                }
            }
            _ => {
                while raw.len() < size {
                    put(
                        raw,
                        format_args!(
                            "{};{}-{:02};{}.{:02};",
                            rng.range(10_000, 99_999),
                            rng.range(2019, 2027),
                            rng.range(1, 13),
                            rng.below(90_000),
                            rng.below(100)
                        ),
                    );
                    raw.extend_from_slice(language.word(&mut rng).as_bytes());
                    raw.extend_from_slice(b"\r\n");
                }
            }
        }
        self.tables.base64_lines(raw, out);
    }
}

/// Appends formatted text; writing to memory can't fail.
fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

fn subject(language: &Language, rng: &mut Rng, out: &mut Vec<u8>) {
    for n in 0..rng.range(3, 8) {
        let word: String = language.word(rng).chars().filter(char::is_ascii).collect();
        if n > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn paragraphs(language: &Language, rng: &mut Rng, size: usize, before: &[u8], after: &[u8], out: &mut Vec<u8>) {
    let end = out.len() + size;
    while out.len() < end {
        let len = (rng.range(120, 900) as usize).min(end - out.len());
        out.extend_from_slice(before);
        language.paragraph(rng, out, len);
        out.extend_from_slice(after);
    }
}

/// Returns the value that a standard normal number exceeds with probability `share` (Abramowitz and Stegun 26.2.23).
fn upper_quantile(share: f64) -> f64 {
    let tail = share.clamp(1e-9, 1.0 - 1e-9);
    let (p, sign) = if tail <= 0.5 { (tail, 1.0) } else { (1.0 - tail, -1.0) };
    let t = (-2.0 * p.ln()).sqrt();
    let top = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let bottom = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    sign * (t - top / bottom)
}
