//! The return instructions of a function. Code is read from its beginning, instruction by instruction: a byte that looks like a return may be
//! part of another instruction. A function that cannot be read to its end has none.

/// Offsets of the return instructions from the beginning of the code.
#[cfg(target_arch = "x86_64")]
pub(super) fn of(code: &[u8]) -> Option<Vec<u64>> {
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    let mut found = Vec::new();
    for instruction in Decoder::new(64, code, DecoderOptions::NONE) {
        if instruction.is_invalid() {
            return None;
        }
        if instruction.mnemonic() == Mnemonic::Ret {
            found.push(instruction.ip());
        }
    }
    (!found.is_empty()).then_some(found)
}

/// Instructions are words here, and a return is one of them.
#[cfg(target_arch = "aarch64")]
pub(super) fn of(code: &[u8]) -> Option<Vec<u64>> {
    const RET: [u8; 4] = 0xd65f_03c0_u32.to_le_bytes();
    let words = code.as_chunks::<4>().0.iter();
    let found: Vec<u64> =
        words.enumerate().filter(|(_, word)| **word == RET).map(|(at, _)| at as u64 * 4).collect();
    (!found.is_empty()).then_some(found)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn only_instructions_that_return_are_found() {
        let check = |code: &[u8], expected: Option<&[u64]>| {
            assert_eq!(of(code).as_deref(), expected, "{code:02x?}");
        };
        // mov eax, 0xc3c3c3c3; ret; mov rax, [rip + 0xc3]; ret 8; int3
        check(
            &[0xb8, 0xc3, 0xc3, 0xc3, 0xc3, 0xc3, 0x48, 0x8b, 5, 0xc3, 0, 0, 0, 0xc2, 8, 0, 0xcc],
            Some(&[5, 13]),
        );
        // vpxor ymm0, ymm0, ymm0; ret
        check(&[0xc5, 0xfd, 0xef, 0xc0, 0xc3], Some(&[4]));
        // jmp: no return.
        check(&[0xeb, 0xfe], None);
        // An instruction that there is not (push es), and one that is cut off.
        check(&[0xc3, 0x06], None);
        check(&[0xc3, 0xb8, 0xc3], None);
    }
}
