//! The command `zmreplica`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
