"""Work that a sender left to hardware: checksums to finish and superframes to segment."""
