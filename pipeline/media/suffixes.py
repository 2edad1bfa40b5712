"""Which files are taken for videos and images, by their suffix, and the way out for others."""

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mp4v", ".mpeg4", ".mov", ".qt", ".mj2", ".3gp", ".3gpp", ".3g2", ".f4v",
    ".mkv", ".mk3d", ".webm", ".ivf", ".obu", ".ogv", ".ogm", ".nut", ".avi", ".divx", ".xvid",
    ".dv", ".dif", ".mxf", ".gxf", ".wmv", ".wm", ".asf", ".wtv", ".flv", ".rm", ".rmvb",
    ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".mp2v", ".m2p", ".vob", ".evo", ".vro",
    ".mod", ".tod", ".ts", ".mts", ".m2t", ".m2ts", ".tp", ".trp",
    ".mjpeg", ".mjpg", ".h264", ".264", ".avc", ".hevc", ".h265", ".265", ".y4m",
    ".heic", ".heif", ".hif",
})
"""What PyAV opens; among it HEIC photos, which hold a picture of a video codec."""

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif", ".avifs",
    ".bmp", ".dib", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".j2k", ".jpf", ".jpx",
})
"""What Pillow opens."""

_WAYS_OUT: dict[str, tuple[str, ...]] = {
    "it is a camera's raw photo: export it as JPEG": (
        ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf",
        ".raw", ".rw2", ".srw",
    ),
    "it is a camera's raw video: export it as MP4": (".ari", ".braw", ".crm", ".r3d"),
    "it is a 360-degree camera's recording: export it as a flat MP4": (".360", ".insp", ".insv"),
    "it is a small copy that a camera makes for previews: take the recording itself": (
        ".lrf", ".lrv", ".thm",
    ),
    "it is not an image of pixels: export it as PNG": (
        ".ai", ".eps", ".emf", ".pdf", ".svg", ".svgz", ".wmf",
    ),
    "it is an image of a kind that is not read: export it as PNG or JPEG": (
        ".dds", ".exr", ".hdr", ".ico", ".jxl", ".kra", ".pcx", ".psb", ".psd", ".qoi", ".sgi",
        ".xcf",
    ),
    "it is an archive: unpack it": (".7z", ".gz", ".iso", ".rar", ".tar", ".tgz", ".xz", ".zip"),
    "its download or copying is not finished": (".crdownload", ".download", ".part", ".partial"),
}
# fmt: on


def way_out(suffix: str) -> str | None:
    """Say what to do about a file that is not taken, as the second half of a sentence.

    Args:
        suffix: Of the file's name, with its dot, in any case.

    Returns:
        Such as "it is an archive: unpack it"; None where nothing is known of such files.
    """
    kinds = (text for text, suffixes in _WAYS_OUT.items() if suffix.lower() in suffixes)
    return next(kinds, None)
