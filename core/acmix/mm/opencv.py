"""OpenCV, which MMEngine imports, and what to do where it is installed but can't be loaded."""


def require_opencv() -> None:
    """Import it.

    Raises:
        ImportError: It isn't installed, or a library of the system that it needs is not there.
    """
    remedy = "pip install --force-reinstall opencv-python-headless"
    try:
        import cv2  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: {remedy}", name=error.name
        ) from error
    except ImportError as error:
        raise ImportError(
            f"OpenCV can't be loaded ({error}); on a machine without a screen take the one that "
            f"needs no libGL: pip uninstall opencv-python, then {remedy}"
        ) from error
