"""Reports of the speaker, as the daemon shows them. No I/O."""

from vtep.control.evpn_schema import REPORT_LIMIT_S, EvpnReport, EvpnSpeaker, EvpnStatus


def silent_since(attached: float, reported: float | None, now: float) -> float | None:
    """Return since when a speaker has been silent, or None if it reports in time.

    One that has just attached has as much time for its first report. All times are in seconds.
    """
    last = attached if reported is None else max(attached, reported)
    return last if now - last > REPORT_LIMIT_S else None


def aged(report: EvpnReport, speaker: EvpnSpeaker) -> EvpnStatus:
    """Return a status whose ages are those of now, and not of the time of the report."""
    more = speaker["report_age"] or 0.0
    status: EvpnStatus = {**report, "speaker": speaker}
    status["sessions"] = [
        {
            **each,
            "age": each["age"] + more,
            "last_error_age": None
            if each["last_error_age"] is None
            else each["last_error_age"] + more,
        }
        for each in report["sessions"]
    ]
    status["duplicates"] = [{**each, "age": each["age"] + more} for each in report["duplicates"]]
    return status


def empty_report() -> EvpnReport:
    """Return the report in place of that of a speaker that does not run."""
    return {
        "sessions": [],
        "segments": [],
        "unmatched": [],
        "label_conflicts": [],
        "duplicates": [],
        "replaced_next_hops": [],
        "ignored": {},
        "not_installed": {},
        "problems": [],
    }
