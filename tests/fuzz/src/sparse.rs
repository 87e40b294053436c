//! Files that are mostly zeros, as few bytes: patches of an offset (4 bytes), a length (2) and so many
//! bytes, laid over zeros.

/// Longest file that is made.
const FILE_MAX: usize = 1 << 20;
/// Zeros in a row behind which a new patch begins.
const HOLE: usize = 24;

/// Makes the file of its patches; it ends where the last of them ends. What is no whole patch at the
/// end counts with the bytes it has.
pub fn expand(packed: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut rest = packed;
    while let Some((head, behind)) = rest.split_first_chunk::<6>() {
        let [a, b, c, d, e, f] = *head;
        let offset = u32::from_le_bytes([a, b, c, d]) as usize % FILE_MAX;
        let len = usize::from(u16::from_le_bytes([e, f])).min(behind.len());
        let (bytes, next) = behind.split_at(len);
        if file.len() < offset + len {
            file.resize(offset + len, 0);
        }
        file[offset..offset + len].copy_from_slice(bytes);
        rest = next;
    }
    file
}

/// Takes a file of at most 1 MiB apart.
pub fn pack(file: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut put = |at: usize, bytes: &[u8]| {
        packed.extend_from_slice(&(at as u32).to_le_bytes());
        packed.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        packed.extend_from_slice(bytes);
    };
    let mut at = 0;
    while at < file.len() {
        let Some(skip) = file[at..].iter().position(|byte| *byte != 0) else {
            break;
        };
        at += skip;
        let most = (at + usize::from(u16::MAX)).min(file.len());
        let piece = &file[at..most];
        let hole = piece
            .windows(HOLE)
            .position(|run| run.iter().all(|byte| *byte == 0));
        let len = hole.unwrap_or(piece.len());
        put(at, &piece[..len]);
        at += len;
    }
    if file.last() == Some(&0) {
        put(file.len() - 1, &[0]);
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_survives_being_packed() {
        let mut file = vec![0; 200_000];
        file[5..90_000].fill(7);
        file[100] = 0;
        file[150_000] = 1;
        assert_eq!(expand(&pack(&file)), file);
        assert!(expand(&[]).is_empty() && pack(&[]).is_empty());
    }
}
