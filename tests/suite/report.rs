//! The report, in a browser: what it shows, that it needs nothing else, that it fits a phone and prints.

// A test that cannot run here says so.
#![allow(clippy::print_stderr)]

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::mounted::{self, Scene, err, out};
use zmreplica_treegen::{Config, Generator, Preset};

/// Two nights: in the second a session is gone, an account lacks its meta.xml, and one has a name that tries to be markup.
fn two_nights() -> (Scene, String) {
    let scene = Scene::new();
    let config =
        Config { accounts: 6, messages: 6, mean_size_bytes: 2_000, incrementals: 2, ..Config::preset(Preset::Sample) };
    let generator = Generator::create(&scene.source(), config, 2).unwrap();
    scene.snapshot();
    let fulls: Vec<String> = generator.labels().into_iter().filter(|label| label.starts_with("full-")).collect();
    fs::remove_dir_all(scene.source().join("sessions").join(&fulls[1])).unwrap();
    let newest = scene.source().join("sessions").join(&fulls[2]);
    let directory = mounted::shell(r#"find "$1/accounts" -name meta.xml | sort | head -n 1"#, &[&newest]);
    fs::remove_file(directory.trim()).unwrap();
    let accounts = scene.source().join("accounts.xml");
    let text = fs::read_to_string(&accounts).unwrap();
    let evil = "&lt;script&gt;document.title='evil'&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;@example.com";
    let email = text.split("email=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    fs::write(&accounts, text.replacen(&email, evil, 1)).unwrap();
    scene.suspect_snapshot();
    (scene, fulls[1].clone())
}

/// The browser, or `None`, said aloud.
fn browser() -> Option<&'static str> {
    let found = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()));
    if found.is_none() {
        eprintln!("NOT TESTED: no Chromium on this machine; scripts/test installs it");
    }
    found
}

fn browse(browser: &str, home: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command.arg(format!("--user-data-dir={}", home.join("profile").display())).args(arguments).env("HOME", home);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", err(&output));
    out(&output)
}

#[test]
fn the_page_reports_what_happened_and_loads_nothing() {
    let (scene, gone) = two_nights();
    let said = scene.code(0, &["report", "page.html"]);
    assert!(err(&said).contains("2 snapshots, 6 accounts"), "{}", err(&said));
    let page = fs::read_to_string(scene.path("page.html")).unwrap();
    for text in [
        &format!("{gone} vanished"),
        "1 account is less restorable than before",
        "5 of 6",
        "has no meta.xml",
        "needs attention",
    ] {
        assert!(page.contains(text), "{text}");
    }
    for load in ["http:", "https:", "//cdn", "@import", "url(", "<link", "<img", "<iframe", "fetch(", "XMLHttpRequest"]
    {
        assert!(!page.contains(load), "{load}");
    }
    assert!(page.contains("default-src 'none'"));
    assert_eq!(page.matches("<script").count(), 1, "the name that tries to be markup is text");
    assert_eq!(scene.ok(&["report", "-"]).lines().count(), page.lines().count());
    let names: Vec<String> =
        fs::read_dir(scene.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.ends_with(".tmp")), "{names:?}");
    let failed = scene.code(1, &["report", "no/such/directory/page.html"]);
    assert!(err(&failed).contains("Cannot write"));
}

#[test]
fn a_browser_shows_searches_and_prints_it() {
    let (scene, _) = two_nights();
    scene.ok(&["report", "page.html"]);
    let Some(browser) = browser() else { return };
    let page = scene.path("page.html");
    let url = format!("file://{}", page.display());
    let home = scene.path("");

    let shown = browse(browser, &home, &["--dump-dom", &url]);
    assert!(shown.contains("<title>Replica of ") && !shown.contains("<title>evil"), "no text became a script");
    assert!(shown.contains("aria-live=\"polite\">6 accounts</span>"));
    assert_eq!(shown.matches("<tr hidden").count(), 0);

    let listed = scene.code(4, &["accounts"]);
    let whole = out(&listed)
        .lines()
        .find(|line| line.contains("  up to date  "))
        .unwrap()
        .split(['@', '.'])
        .next()
        .unwrap()
        .to_owned();
    let search = format!("{url}#search={}%20DATE", whole.to_uppercase());
    let searched = browse(browser, &home, &["--dump-dom", &search]);
    assert!(searched.contains("1 of 6 accounts"), "the search counts");
    assert_eq!(searched.matches("<tr hidden").count(), 5);

    // On a phone nothing but tables and charts of their own scrolls sideways.
    let probe = "<script>document.title = 'wide:' + (document.documentElement.scrollWidth - window.innerWidth);</script></body>";
    let probed = fs::read_to_string(&page).unwrap().replace("</body>", probe);
    fs::write(scene.path("probe.html"), probed).unwrap();
    let phone = browse(
        browser,
        &home,
        &["--window-size=400,800", "--dump-dom", &format!("file://{}", scene.path("probe.html").display())],
    );
    let wide: i64 = phone.split("<title>wide:").nth(1).unwrap().split('<').next().unwrap().parse().unwrap();
    assert!(wide <= 0, "{wide} pixels too wide");

    let pdf = scene.path("page.pdf");
    browse(browser, &home, &[&format!("--print-to-pdf={}", pdf.display()), "--no-pdf-header-footer", &url]);
    let printed = fs::read(pdf).unwrap();
    assert!(printed.starts_with(b"%PDF-") && printed.len() > 10_000);
}

#[test]
fn stores_with_little_in_them_have_a_page_too() {
    let scene = Scene::new();
    let none = scene.code(1, &["report", "page.html"]);
    assert!(err(&none).contains("no snapshots yet"), "{}", err(&none));
    assert!(!scene.path("page.html").exists());
    fs::write(scene.source().join("file"), "no backup tree").unwrap();
    scene.snapshot();
    scene.ok(&["report", "page.html"]);
    let page = fs::read_to_string(scene.path("page.html")).unwrap();
    assert!(page.contains("this is not a backup tree") && page.contains("No sessions."));
}
