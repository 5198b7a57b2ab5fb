"""Received bytes that are broken, or cut into pieces anywhere."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

unhurried = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

cuts = st.one_of(
    st.lists(st.integers(1, 40) | st.integers(1, 20_000), max_size=60),
    st.integers(1, 50).map(lambda size: [size] * 400),
)


@st.composite
def broken(draw: st.DrawFn, traffic: bytes) -> bytes:
    """The same bytes with a few of them changed, dropped, doubled."""
    data = bytearray(traffic)
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["change", "drop", "double", "cut"])):
            case "change":
                data[at] = draw(st.integers(0, 255))
            case "drop":
                del data[at : at + draw(st.integers(1, 20))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case "cut":
                del data[at:]
    return bytes(data)


def pieces_of(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    return [piece for piece in pieces if piece]
