//! Names for addresses of code: what is mapped where, and the symbols of the program itself.
//!
//! A program that was stripped has none; then a profile has addresses, which `pprof` names with the help
//! of a program that was not.

use std::fs;

/// A file that is mapped to be executed.
pub(super) struct Mapping {
    /// The first address.
    pub(super) start: usize,
    /// The address behind the last.
    pub(super) end: usize,
    /// Where in the file it begins.
    pub(super) offset: u64,
    /// The file.
    pub(super) file: String,
    /// Whether addresses in it are named here.
    pub(super) has_names: bool,
}

/// What is known of this process's code.
pub(super) struct Symbols {
    mappings: Vec<Mapping>,
    /// Where each function of the program begins and ends in memory, in order.
    functions: Vec<Function>,
}

struct Function {
    start: u64,
    end: u64,
    name: String,
}

impl Symbols {
    /// Reads them; what cannot be read is not known.
    pub(super) fn load() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let program = fs::read_link("/proc/self/exe").unwrap_or_default().display().to_string();
        let base =
            maps.lines().filter_map(line).find(|(mapping, _)| mapping.file == program && mapping.offset == 0);
        let base = base.map_or(0, |(mapping, _)| mapping.start as u64);
        let functions = fs::read("/proc/self/exe").ok().and_then(|file| functions(&file, base));
        let functions = functions.unwrap_or_default();
        let executable = maps.lines().filter_map(line).filter(|(_, is_executable)| *is_executable);
        let mut mappings: Vec<Mapping> = executable.map(|(mapping, _)| mapping).collect();
        for mapping in &mut mappings {
            mapping.has_names = mapping.file == program && !functions.is_empty();
        }
        Self { mappings, functions }
    }

    #[cfg(test)]
    pub(super) const fn none() -> Self {
        Self { mappings: Vec::new(), functions: Vec::new() }
    }

    pub(super) fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// The number of the mapping that an address is in, from one on; else none, which is zero.
    pub(super) fn mapping_of(&self, address: usize) -> u64 {
        let place = self.mappings.iter().position(|mapping| (mapping.start..mapping.end).contains(&address));
        place.map_or(0, |place| place as u64 + 1)
    }

    /// The name of the function that an address is in, as linkers have it.
    pub(super) fn name_of(&self, address: usize) -> Option<&str> {
        let address = address as u64;
        let behind = self.functions.partition_point(|function| function.start <= address);
        let function = self.functions.get(behind.checked_sub(1)?)?;
        (address < function.end).then_some(&*function.name)
    }
}

/// One line of `/proc/self/maps`, and whether it may be executed.
fn line(line: &str) -> Option<(Mapping, bool)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_executable = words.next()?.contains('x');
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let file = words.nth(2).unwrap_or_default().to_owned();
    let number = |text| usize::from_str_radix(text, 16).ok();
    let mapping = Mapping { start: number(start)?, end: number(end)?, offset, file, has_names: false };
    Some((mapping, is_executable))
}

/// The functions of a program of 64 bits in the ELF format, which is loaded at `base`.
fn functions(file: &[u8], base: u64) -> Option<Vec<Function>> {
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let is_anywhere = u16_at(file, 16)? == 3;
    let base = if is_anywhere { base } else { 0 };
    let sections = usize::try_from(u64_at(file, 40)?).ok()?;
    let (size, count) = (usize::from(u16_at(file, 58)?), usize::from(u16_at(file, 60)?));
    let section = |number: usize| file.get(sections.checked_add(number.checked_mul(size)?)?..);
    let symbols = (0..count).filter_map(section).find(|header| u32_at(header, 4) == Some(2))?;
    let strings = section(usize::try_from(u32_at(symbols, 40)?).ok()?)?;
    let contents = |header: &[u8]| {
        let (start, length) = (u64_at(header, 24)?, u64_at(header, 32)?);
        let start = usize::try_from(start).ok()?;
        file.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    };
    let strings = contents(strings)?;
    let function = |symbol: &[u8]| {
        let is_function = symbol.get(4)? & 0xf == 2;
        let (start, length) = (u64_at(symbol, 8)?, u64_at(symbol, 16)?);
        let name =
            strings.get(usize::try_from(u32_at(symbol, 0)?).ok()?..)?.split(|byte| *byte == 0).next()?;
        let start = base.checked_add(start)?;
        (is_function && length > 0).then(|| Function {
            start,
            end: start.saturating_add(length),
            name: String::from_utf8_lossy(name).into_owned(),
        })
    };
    let mut functions: Vec<Function> = contents(symbols)?.chunks_exact(24).filter_map(function).collect();
    functions.sort_unstable_by_key(|function| function.start);
    Some(functions)
}

fn u16_at(bytes: &[u8], place: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(place..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], place: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(place..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], place: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(place..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_this_program_have_names_and_nonsense_has_none() {
        let symbols = Symbols::load();
        let here = functions_of_this_program_have_names_and_nonsense_has_none as fn() as usize;

        assert!(symbols.mapping_of(here) > 0);
        let name = symbols.name_of(here);
        // The release profile may strip them.
        assert!(name.is_some() || !cfg!(debug_assertions));
        assert!(name.is_none_or(|name| name.contains("functions_of_this_program_have_names")));
        assert_eq!(symbols.name_of(1), None);
        assert!(functions(b"\x7fELF\x02\x01", 0).is_none());
        assert!(functions(&[0x7f; 100], 0).is_none());
    }
}
