//! Vocabulary, names and running text.
//!
//! Text is drawn word by word from a Zipf distribution, so that it compresses about as well as real prose, and fast enough
//! that generating a tree is bound by the disk.

use crate::rng::Rng;

/// Slots of a sampling table: 16 random bits choose a word.
const SLOTS: usize = 1 << 16;
/// Words of a language.
const VOCABULARY: usize = 4096;
/// Room of a word with the blank behind it; copying a constant size is several times faster than copying the exact length.
const WORD: usize = 16;
/// Text lines are broken behind this column.
const COLUMNS: usize = 70;

const ENGLISH: &str = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she there would their we him been has when who will no more if out so up said what its about than into them can only other time new some could these two may first then do any like my now over such our man me even most made after also did many off before must well back through years much where your way down should because long each just state those people too mr how little good world make very year still see own work men day get here between both being under three never know same last another while us might great go come since against right came take used himself few house use during without again place around however home small found thought went say part once general high upon school every does got united number course war until always away something fact though water less public put think almost hand enough took head yet government system better set told nothing night end why called didn eyes find going look asked later point knew next city business give group toward young days let room within side social given order several things present possible rather among important early interest case please regards meeting schedule attached invoice project customer team report budget release update delivery contract deadline confirm available tomorrow office question answer contact phone server backup mail calendar document version review monday tuesday friday thanks best kind";
const GERMAN: &str = "der die und in den von zu das mit sich des auf ist im dem nicht ein eine als auch es an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem einen so zum war haben nur oder aber vor zur bis mehr durch man sein wurde sei hatte kann gegen vom wenn habe seine ihre unter wir soll ich eines jahr zwei jahren diese dieser wieder keine seiner worden will zwischen immer was sagte gibt alle seit muss wurden beim doch jetzt waren drei jahre neue neuen damit bereits da ihr seinen mir uns ihm dann andere sehr heute schon ohne jedoch welche bitte danke rechnung angebot besprechung termin anlage kunde vertrag projekt bericht sitzung unterlagen freigabe lieferung bestellung mitarbeiter abteilung frage antwort woche montag dienstag freitag morgen viele mit freundlichen anbei hallo liebe herr frau firma server sicherung konto adresse telefon version entwurf stand einladung teilnehmer protokoll ergebnis zeit arbeit leben welt haus stadt land seite ende anfang teil leider gerne schnell wichtig m\u{f6}glich gr\u{fc}\u{df}e f\u{fc}r \u{fc}ber k\u{f6}nnen m\u{fc}ssen w\u{e4}re sp\u{e4}ter gr\u{f6}\u{df}e stra\u{df}e";
const SYLLABLES: &str = "an ber cal der en fin gra hol ing jo ker lan mer nor op pel qui ran ster tur un ver wal xen yor zen ba ce di fo gu ha il ju ka le mo na or pi ro se ti ul va we zi schen tion ment lich keit bach hof land stein berg feld tech data net soft log com pro con trans inter sub re pre dis ex in";
/// First names, for mail addresses (ASCII, so that no header needs encoding).
pub const FIRST: &str = "Anna Ben Clara David Emma Felix Greta Hannah Ian Julia Karl Laura Max Nina Oliver Paula Quentin Rosa Simon Tanja Ulrich Vera Walter Xenia Yusuf Zoe Andrea Bernd Carmen Dieter Elena Frank Gisela Henry Irene Jakob Katrin Lukas Maria Norbert Olga Peter Ralf Sabine Thomas Ursula Viktor Wendy Alice Bob James Mary John Linda Robert Susan";
/// Family names.
pub const LAST: &str = "Adler Bauer Clark Dietrich Evans Fischer Graf Hoffmann Ivanov Jones Keller Lang Meyer Neumann Otto Petersen Quinn Richter Schmidt Taylor Ullmann Vogel Wagner Xu Young Ziegler Albrecht Brandt Cooper Davis Engel Friedrich Green Huber Jansen Koch Lewis Mueller Nowak Olsen Parker Roth Schulz Turner Voss Weber Wilson Zimmermann Baker Carter Hughes King";

/// A language: words with their blanks, and the sampling table.
#[derive(Debug)]
pub struct Language {
    words: Vec<[u8; WORD]>,
    lengths: Vec<u8>,
    slots: Vec<u16>,
}

impl Language {
    fn new(common: &str, rng: &mut Rng) -> Self {
        let syllables: Vec<&str> = SYLLABLES.split(' ').collect();
        let mut list: Vec<String> = common.split(' ').map(str::to_owned).collect();
        while list.len() < VOCABULARY {
            let word: String = (0..rng.range(2, 5)).map(|_| *rng.pick(&syllables)).collect();
            if word.len() < WORD {
                list.push(word);
            }
        }
        let (mut words, mut lengths) = (Vec::new(), Vec::new());
        for word in &list {
            let mut cell = [b' '; WORD];
            cell[..word.len()].copy_from_slice(word.as_bytes());
            words.push(cell);
            lengths.push(word.len() as u8 + 1);
        }
        let total: f64 = (0..list.len()).map(weight).sum();
        let mut slots = Vec::with_capacity(SLOTS);
        let mut share = 0.0;
        for rank in 0..list.len() {
            share += weight(rank) / total;
            slots.resize(((share * SLOTS as f64) as usize).min(SLOTS), rank as u16);
        }
        slots.resize(SLOTS, 0);
        Self { words, lengths, slots }
    }

    /// Draws one word without its blank.
    pub fn word(&self, rng: &mut Rng) -> &str {
        let word = usize::from(self.slots[(rng.bits() & 0xffff) as usize]);
        let bytes = &self.words[word][..usize::from(self.lengths[word]) - 1];
        std::str::from_utf8(bytes).unwrap_or("word")
    }

    /// Appends one paragraph of `target` bytes or a few more, as lines that end in CR LF.
    pub fn paragraph(&self, rng: &mut Rng, out: &mut Vec<u8>, target: usize) {
        out.reserve(target + 128);
        let end = out.len() + target;
        let mut line = [0u8; COLUMNS + 3 * WORD];
        let (mut at, mut left, mut capital) = (0, 0, true);
        let mut bits = 0u64;
        let mut have = 0;
        while out.len() + at < end {
            if have == 0 {
                bits = rng.bits();
                have = 4;
            }
            if left == 0 {
                left = 5 + (bits >> 59) as usize / 2;
                capital = true;
            }
            let word = usize::from(self.slots[(bits & 0xffff) as usize]);
            bits >>= 16;
            have -= 1;
            line[at..at + WORD].copy_from_slice(&self.words[word]);
            if capital {
                line[at] = line[at].to_ascii_uppercase();
                capital = false;
            }
            at += usize::from(self.lengths[word]);
            left -= 1;
            if left == 0 {
                // The low bits of the word's slot serve as chance: most sentences end in a full stop.
                let ending: &[u8; 2] = if word % 11 == 3 { b"? " } else { b". " };
                line[at - 1..at + 1].copy_from_slice(ending);
                at += 1;
            } else if word % 29 == 7 {
                line[at - 1..at + 1].copy_from_slice(b", ");
                at += 1;
            }
            if at > COLUMNS {
                line[at - 1..at + 1].copy_from_slice(b"\r\n");
                out.extend_from_slice(&line[..=at]);
                at = 0;
            }
        }
        if at > 0 {
            line[at - 1..at + 2].copy_from_slice(b".\r\n");
            out.extend_from_slice(&line[..at + 2]);
        }
    }
}

/// Returns the relative frequency of a word by its rank (Zipf and Mandelbrot).
fn weight(rank: usize) -> f64 {
    (rank as f64 + 2.7).powf(-1.15)
}

/// A correspondent.
#[derive(Debug, Clone)]
pub struct Person {
    /// Name as in a From header.
    pub name: String,
    /// Mail address.
    pub email: String,
}

/// Everything that messages are composed of, prepared once per seed.
#[derive(Debug)]
pub struct Tables {
    /// English and German.
    pub languages: [Language; 2],
    /// People outside, popular ones first.
    pub people: Vec<Person>,
    /// Domains outside.
    pub domains: Vec<String>,
    /// Style blocks of HTML mail: one per sending organisation.
    pub styles: Vec<Vec<u8>>,
    /// Legal footers: one per sending organisation.
    pub footers: Vec<Vec<u8>>,
    /// Base64 of each 12-bit number, two characters.
    pub base64: Vec<[u8; 2]>,
}

impl Tables {
    /// Prepares the tables of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(&[seed, 1]);
        let languages = [Language::new(ENGLISH, &mut rng), Language::new(GERMAN, &mut rng)];
        let domains: Vec<String> = (0..160)
            .map(|i| {
                let tld = *rng.pick(&["com", "de", "org", "net", "eu", "co.uk"]);
                // The later, rare words are the longer ones and make better names.
                let word: String =
                    languages[i % 2].word(&mut rng).chars().filter(char::is_ascii_alphanumeric).collect();
                format!("{word}{}.example.{tld}", rng.pick(&["", "-gmbh", "-group", "mail", "-online", "tech"]))
            })
            .collect();
        let (first, last): (Vec<&str>, Vec<&str>) = (FIRST.split(' ').collect(), LAST.split(' ').collect());
        let people = (0..1500)
            .map(|_| {
                let (f, l) = (*rng.pick(&first), *rng.pick(&last));
                let domain = &domains[rng.zipf(domains.len() as u64) as usize];
                Person {
                    name: format!("{f} {l}"),
                    email: format!("{}.{}@{domain}", f.to_lowercase(), l.to_lowercase()),
                }
            })
            .collect();
        let styles = (0..48).map(|_| style(&mut rng)).collect();
        let footers = (0..48)
            .map(|i: usize| {
                let mut text = b"-- \r\n".to_vec();
                let len = rng.range(200, 900) as usize;
                languages[i % 2].paragraph(&mut rng, &mut text, len);
                text
            })
            .collect();
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let base64 = (0..4096).map(|i| [ALPHABET[i >> 6], ALPHABET[i & 63]]).collect();
        Self { languages, people, domains, styles, footers, base64 }
    }

    /// Appends bytes as base64 in lines of 76 columns that end in CR LF.
    pub fn base64_lines(&self, data: &[u8], out: &mut Vec<u8>) {
        out.reserve(data.len() / 57 * 78 + 160);
        let mut lines = data.chunks_exact(57);
        for source in &mut lines {
            let mut line = [0u8; 78];
            for (quad, triple) in line.chunks_exact_mut(4).zip(source.chunks_exact(3)) {
                self.quad(triple, quad);
            }
            line[76..].copy_from_slice(b"\r\n");
            out.extend_from_slice(&line);
        }
        if !lines.remainder().is_empty() {
            self.base64(lines.remainder(), out);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Appends bytes as base64 without line breaks.
    pub fn base64(&self, data: &[u8], out: &mut Vec<u8>) {
        for group in data.chunks(3) {
            let mut triple = [0u8; 3];
            triple[..group.len()].copy_from_slice(group);
            let mut quad = [0u8; 4];
            self.quad(&triple, &mut quad);
            for pad in &mut quad[1 + group.len()..] {
                *pad = b'=';
            }
            out.extend_from_slice(&quad);
        }
    }

    #[inline]
    fn quad(&self, triple: &[u8], quad: &mut [u8]) {
        let bits = usize::from(triple[0]) << 16 | usize::from(triple[1]) << 8 | usize::from(triple[2]);
        quad[..2].copy_from_slice(&self.base64[bits >> 12]);
        quad[2..4].copy_from_slice(&self.base64[bits & 0xfff]);
    }
}

/// Composes the style block of one organisation's mails.
fn style(rng: &mut Rng) -> Vec<u8> {
    let mut css = String::from("<style type=\"text/css\">\r\n");
    let fonts = ["Calibri,sans-serif", "Arial,Helvetica,sans-serif", "\"Times New Roman\",serif", "Verdana,sans-serif"];
    for _ in 0..rng.range(8, 60) {
        let selector = rng.pick(&[
            "p.MsoNormal",
            "td.content",
            "a:link",
            "div.header",
            "span.price",
            "table.main",
            "h1.title",
            "li.MsoList",
        ]);
        css.push_str(&format!(
            "{selector}{} {{margin:{}px {}px; padding:{}pt; font-size:{}.0pt; color:#{:06x}; font-family:{};}}\r\n",
            rng.below(20),
            rng.below(30),
            rng.below(30),
            rng.below(12),
            rng.range(8, 24),
            rng.below(1 << 24),
            rng.pick(&fonts)
        ));
    }
    css.push_str("</style>\r\n");
    css.into_bytes()
}
