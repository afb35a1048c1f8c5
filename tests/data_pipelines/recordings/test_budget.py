"""The frames of a training row: those of the codec, whatever floats make of the seconds."""

from data_pipelines.recordings.budget import ROW_FRAMES, dialogue_seconds, row_frames


def test_rows_have_the_frames_that_the_codec_makes_of_each_length() -> None:
    for frames in range(1, ROW_FRAMES):
        seconds = frames * 1920 / 24000
        assert row_frames(seconds, 3.2, 0) == frames + 40 + 11
        assert row_frames(seconds + 1 / 24000, 3.2, 0) == frames + 40 + 12
        assert row_frames(4.0, seconds, 0) == frames + 50 + 11
        if frames < 2000:
            assert dialogue_seconds(seconds, 0) == (ROW_FRAMES - frames - 12) / 12.5
