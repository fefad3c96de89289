//! Carries TCP connections to a port of this host, each byte later by a given time: a distant network for benchmarks.
//!
//! `delay_proxy LISTEN_PORT TARGET_PORT MILLISECONDS`; the time is for one way, half of a round trip. Prints the bytes carried, up and down, when its stdin
//! ends.

#[path = "../tests/suite/support/proxy.rs"]
mod proxy;

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, target, delay] = arguments.as_slice() else {
        return Err("delay_proxy LISTEN_PORT TARGET_PORT MILLISECONDS".into());
    };
    let proxy = proxy::Proxy::start(listen.parse()?, target.parse()?, Duration::from_millis(delay.parse()?));
    writeln!(std::io::stdout(), "{}", proxy.port)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let (up, down) = (proxy.traffic.up.load(Ordering::Relaxed), proxy.traffic.down.load(Ordering::Relaxed));
    writeln!(std::io::stdout(), "{up} {down}")?;
    Ok(())
}
