"""Renders the embedded data set: three actions, drawn in UCF-101's own form, with no assets and no download.

Clips are `<root>/<Class>/v_<Class>_gNN_cNN.avi`, XviD, 320x240 at 25 frames per second, 2 to 4 s long. A group shares
its people, scene and bar; its clips differ in phase, speed, framing, mirroring, shake, light, noise. Scenes, clothes,
bystanders, things, clip lengths and light come from the same distributions for every class: only the action differs.

A stage of 800x600 pixels is painted once per clip; people are drawn onto a copy of it for every frame, and a camera
turns it into a frame. Points are (x, y) in stage pixels, y down; colours are RGB, 0 to 255.
"""

import colorsys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from config import CLASSES, DEMO_ROOT
from files import atomic_path, read_json, remove_abandoned, write_json
from machine import cores, opencv_without_threads

# Their fields stand where they are made: by `random_person`, `paint_stage` and the actions. A pose has joints in
# pixels, (x, y), or pairs of them (far or left, near or right); `up` points from chin to crown; `face` is 1 from the
# side, 0 from the front, -1 from behind; `flip` is -1 for who faces left.
Person = Stage = Pose = SimpleNamespace
VERSION = 1
IDLE_SECONDS = 10  # after which worker processes end
HEIGHT, WIDTH, FPS = 240, 320, 25
MIN_FRAMES, MAX_FRAMES = 50, 100
STAGE_H, STAGE_W, GROUND = 600, 800, 490
SKINS = ((250, 214, 186), (232, 186, 150), (205, 150, 112), (160, 108, 76), (118, 78, 56), (84, 56, 42))
HAIRS = ((30, 24, 22), (62, 42, 30), (104, 68, 40), (176, 134, 78), (120, 116, 112))
ARC = np.linspace(-np.pi / 2, np.pi / 2, 7)
ENDS = np.exp(1j * np.concatenate([np.pi + ARC, ARC]))  # of a limb along x, behind and before
CIRCLE = np.stack([np.cos(np.arange(14) * np.pi / 7), np.sin(np.arange(14) * np.pi / 7)], axis=1)

# Head outlines in head radii, x to the face's side, y down.
SIDE_FACE = np.array([(-.75, -.2), (-.6, -.75), (0, -1), (.55, -.8), (.74, -.3), (.76, -.1), (.98, .2), (.78, .3),
                      (.8, .5), (.68, .62), (.7, .88), (.35, 1.02), (-.1, .75), (-.55, .6)])
SIDE_HAIR = np.array([(-.82, .2), (-.88, -.3), (-.62, -.9), (0, -1.14), (.6, -.95), (.82, -.45), (.45, -.52),
                      (.12, -.42), (.05, -.05), (-.15, .1), (-.3, .45), (-.6, .6)])
FRONT_FACE = np.array([(-.74, -.3), (-.55, -.85), (0, -1.05), (.55, -.85), (.74, -.3), (.68, .3), (.42, .85), (0, 1.04),
                       (-.42, .85), (-.68, .3)])
CROWN = [(-.84, -.45), (-.58, -.95), (0, -1.16), (.58, -.95), (.84, -.45)]
FRONT_HAIR = np.array([(-.8, .05), *CROWN, (.8, .05), (.66, -.35), (.3, -.55), (-.3, -.5), (-.66, -.35)])
BACK_HAIR = np.array([(-.8, .1), *CROWN, (.8, .1), (.5, .7), (-.5, .7)])
HEADS = {1: (SIDE_FACE, SIDE_HAIR), 0: (FRONT_FACE, FRONT_HAIR), -1: (FRONT_FACE, BACK_HAIR)}


# ---------------------------------------------------------------- drawing

def point(x: float, y: float) -> np.ndarray:
    return np.array([x, y], dtype=float)


def tint(colour, factor: float) -> tuple[float, ...]:
    """A colour made darker (factor below 1) or lighter."""
    return tuple(min(255.0, channel * factor) for channel in colour)


def random_colour(rng, saturation=(0.15, 0.85), value=(0.2, 0.95)) -> tuple[float, ...]:
    """Any hue but skin's."""
    hsv = rng.uniform(0.11, 1), rng.uniform(*saturation), rng.uniform(*value)
    return tuple(255 * channel for channel in colorsys.hsv_to_rgb(*hsv))


def polygon(image, points, colour) -> None:
    """Fills a polygon; corners count to an eighth of a pixel, as those of `line` do."""
    cv2.fillPoly(image, [np.rint(np.asarray(points) * 8).astype(np.int32)], colour, cv2.LINE_AA, 3)


def line(image, a, b, colour, thickness=1) -> None:
    a, b = np.rint(np.multiply([a, b], 8)).astype(int).tolist()
    cv2.line(image, a, b, colour, thickness, cv2.LINE_AA, 3)


def rectangle(image, x0, y0, x1, y1, colour) -> None:
    cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)), colour, -1)


def capsule(a, b, ra, rb, bulge=0.0) -> np.ndarray:
    """Outline of a tapered limb from `a` (radius ra) to `b` (radius rb), thicker at 40 % of it by `bulge`."""
    a, b = complex(*a), complex(*b)
    unit = ENDS * ((b - a) / abs(b - a) if a != b else 1)
    side = (0.6 * ra + 0.4 * rb) * (1 + bulge) * unit[7]
    middle, outline = a + 0.4 * (b - a), np.empty(16, complex)
    outline[:7], outline[7] = a + ra * unit[:7], middle + side
    outline[8:15], outline[15] = b + rb * unit[7:], middle - side
    return outline.view(float).reshape(16, 2)


def limb(image, a, b, ra, rb, colour, bulge=0.0) -> None:
    """A tapered limb, lit from the upper left."""
    polygon(image, capsule(a, b, ra, rb, bulge), tint(colour, 0.68))
    polygon(image, capsule(a - 0.2 * ra, b - 0.2 * rb, ra * 0.72, rb * 0.72, bulge), colour)


def ball(image, centre, radius, colour) -> None:
    polygon(image, centre + radius * CIRCLE, tint(colour, 0.68))
    polygon(image, centre - 0.2 * radius + 0.72 * radius * CIRCLE, colour)


def hull(image, centres, radii, colour) -> None:
    """The convex hull of circles: a torso or a pelvis, lit from the upper left."""
    radii = radii[:, None, None]
    for factor, scale, shift in ((0.68, 1.0, 0.0), (1.0, 0.76, 0.2)):
        rims = np.asarray(centres)[:, None] + radii * (scale * CIRCLE - shift)
        polygon(image, cv2.convexHull(np.float32(rims.reshape(-1, 2)))[:, 0], tint(colour, factor))


def shadow(image, x, y, rx, ry, strength=0.5) -> None:
    """A soft dark ellipse on the ground."""
    area = np.s_[max(0, int(y - ry)):int(y + ry), max(0, int(x - rx)):min(STAGE_W, int(x + rx))]
    down, across = np.ogrid[area]
    depth = 1 - strength * np.clip(1 - ((across - x) / rx) ** 2 - ((down - y) / ry) ** 2, 0, 1)
    image[area] = image[area] * depth[..., None].astype(np.float32)


# ---------------------------------------------------------------- people

def random_person(rng) -> Person:
    """One person's looks; `unit` is an eighth of the body height in pixels, and every length a multiple."""
    return Person(
        unit=rng.uniform(33, 37), build=rng.uniform(0.88, 1.2), skin=SKINS[rng.integers(len(SKINS))],
        hair=HAIRS[rng.integers(len(HAIRS))], style=rng.choice(["short", "short", "bald", "cap", "long"]),
        top=rng.choice(["bare", "tank", "tee"]), shirt=random_colour(rng), shorts=random_colour(rng),
        long_legs=rng.random() < 0.35, shoes=random_colour(rng, (0, 0.6)), gloves=random_colour(rng),
    )


def reach(starts, targets, upper, lower, sides) -> tuple[np.ndarray, np.ndarray]:
    """Two-bone inverse kinematics of a pair of limbs that bend to `sides` (1 or -1): middle joints, reachable ends."""
    distance = np.maximum(np.hypot(*(targets - starts).T), 1e-6)[:, None]
    along = (targets - starts) / distance
    distance = np.clip(distance, abs(upper - lower) + 1.0, 0.998 * (upper + lower))
    forward = (upper**2 - lower**2 + distance**2) / (2 * distance)
    sideways = np.reshape(sides, (2, 1)) * np.sqrt(np.maximum(upper**2 - forward**2, 0.0))
    return starts + forward * along + sideways * along[:, ::-1] * (-1, 1), starts + distance * along


def draw_arm(image, person: Person, pose: Pose, i: int, gloves=False) -> None:
    u, k = person.unit, person.build
    dim = 0.8 if pose.face == 1 and i == 0 else 1.0
    shoulder, elbow, hand = pose.shoulders[i], pose.elbows[i], pose.hands[i]
    skin = tint(person.skin, dim)
    limb(image, shoulder, elbow, 0.36 * k * u, 0.25 * k * u, skin, 0.1)
    limb(image, elbow, hand, 0.26 * k * u, 0.17 * u, skin, 0.12)
    if person.top == "tee":
        sleeve = shoulder + 0.5 * (elbow - shoulder)
        limb(image, shoulder, sleeve, 0.42 * k * u, 0.38 * k * u, tint(person.shirt, dim))
    if gloves:
        wrist = hand - 0.35 * (hand - elbow)
        limb(image, wrist, hand, 0.26 * u, 0.3 * u, tint(person.gloves, 0.6 * dim))
        ball(image, hand, 0.46 * u, tint(person.gloves, dim))
    else:
        ball(image, hand, 0.24 * u, skin)


def draw_leg(image, person: Person, pose: Pose, i: int) -> None:
    u, k = person.unit, person.build
    dim = 0.8 if pose.face == 1 and i == 0 else 1.0
    hip, knee, ankle, toe = pose.hips[i], pose.knees[i], pose.ankles[i], pose.toes[i]
    cloth = tint(person.shorts, dim)
    lower = cloth if person.long_legs else tint(person.skin, dim)
    limb(image, knee, ankle, 0.31 * k * u, 0.2 * u, lower, 0.15)
    limb(image, hip, knee, 0.46 * k * u, 0.33 * k * u, lower, 0.05)
    limb(image, ankle, toe, 0.22 * u, 0.18 * u, tint(person.shoes, dim))
    if not person.long_legs:
        limb(image, hip, hip + 0.6 * (knee - hip), 0.5 * k * u, 0.47 * k * u, cloth)


def draw_torso(image, person: Person, pose: Pose) -> None:
    u, k = person.unit, person.build
    cloth = person.skin if person.top == "bare" else person.shirt
    spine = pose.neck - pose.hips.mean(axis=0)
    spine = spine / np.hypot(*spine)
    waist = pose.hips + 0.9 * u * spine
    limb(image, pose.neck, pose.head, 0.3 * k * u, 0.27 * u, tint(person.skin, 0.85))
    chest = 0.82 * pose.shoulders + 0.18 * pose.neck
    hull(image, [*chest, *(chest - 0.9 * u * spine), *waist], k * u * np.repeat([0.36, 0.45, 0.4], 2), cloth)
    belt = pose.hips + 0.45 * u * spine
    hull(image, [*pose.hips, *belt], k * u * np.repeat([0.5, 0.42], 2), person.shorts)


def draw_head(image, person: Person, pose: Pose) -> None:
    radius, up = 0.56 * person.unit, pose.up / np.hypot(*pose.up)
    right = point(-up[1], up[0]) * pose.flip

    def place(outline):
        outline = np.asarray(outline, dtype=float)
        return pose.head + radius * (outline[..., :1] * right - outline[..., 1:] * up)

    face, hair = HEADS[pose.face]
    polygon(image, place(face), tint(person.skin, 0.78))
    polygon(image, place(face * 0.86 - point(0.06, 0.08)), person.skin)
    if pose.face == 0:
        for x in (-0.3, 0.3):
            polygon(image, place(point(x, -0.02) + CIRCLE * (0.12, 0.1)), (25, 20, 20))
            line(image, *place([(x - 0.17, -0.26), (x + 0.17, -0.28)]), tint(person.hair, 0.8), 2)
            polygon(image, place(point(2.6 * x, 0.05) + CIRCLE * (0.12, 0.2)), tint(person.skin, 0.8))
        line(image, *place([(-0.22, 0.56), (0.22, 0.56)]), (130, 60, 60), 2)
    elif pose.face == 1:
        polygon(image, place(point(0.52, -0.06) + CIRCLE * (0.1, 0.12)), (25, 20, 20))
        polygon(image, place(point(-0.12, 0.1) + CIRCLE * (0.14, 0.2)), tint(person.skin, 0.65))
    if person.style == "bald":
        return
    colour = person.shirt if person.style == "cap" else person.hair
    polygon(image, place(hair), colour)
    if person.style == "cap" and pose.face == 0:
        polygon(image, place([(-0.82, -0.5), (0.82, -0.5), (0.7, -0.28), (-0.7, -0.28)]), tint(colour, 0.6))
    if person.style == "cap" and pose.face == 1:
        polygon(image, place([(0.5, -0.6), (1.4, -0.42), (1.35, -0.32), (0.6, -0.35)]), tint(colour, 0.7))
    if person.style == "long" and pose.face != 0:
        polygon(image, place([(-0.8, -0.3), (-0.2, 0), (-0.3, 1.2), (-0.75, 1.3)]), tint(colour, 0.85))


def draw_person(image, person: Person, pose: Pose, gloves=False, rod: Stage | None = None) -> None:
    """A whole person; from the side, the far arm is behind the body. A `rod` is between body and arms."""
    if pose.face == 1:
        draw_arm(image, person, pose, 0, gloves)
    draw_leg(image, person, pose, 0)
    draw_leg(image, person, pose, 1)
    draw_torso(image, person, pose)
    draw_head(image, person, pose)
    if rod:
        draw_rod(image, rod)
    for i in (1,) if pose.face == 1 else (0, 1):
        draw_arm(image, person, pose, i, gloves)


# ---------------------------------------------------------------- stage

def add_texture(image, rng, cells: tuple[int, int], strength: float) -> None:
    """Adds smooth noise with cells of (width, height) pixels to a part of an image, in place."""
    h, w = image.shape[:2]
    coarse = rng.normal(0, strength, (h // cells[1] + 2, w // cells[0] + 2)).astype(np.float32)
    noise = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)
    image[:] = np.clip(image + noise[..., None], 0, 255)


def fill_gradient(image, top, bottom) -> None:
    ramp = np.linspace(0, 1, len(image), dtype=np.float32)[:, None, None]
    image[:] = (1 - ramp) * np.float32(top) + ramp * np.float32(bottom)


def paint_floor(image, rng, base: int) -> None:
    """Boards, tiles or bare ground, running to a vanishing point."""
    colour = random_colour(rng, (0.05, 0.5), (0.35, 0.8))
    fill_gradient(image[base:], tint(colour, 0.8), tint(colour, 1.1))
    kind = rng.choice(["boards", "tiles", "bare"])
    if kind != "bare":
        far = np.linspace(0, STAGE_W, 15)
        near = STAGE_W / 2 + (far - STAGE_W / 2) * 2.4 + rng.uniform(-60, 60)
        for i in range(14):
            strip = [(far[i], base), (far[i + 1], base), (near[i + 1], STAGE_H), (near[i], STAGE_H)]
            polygon(image, strip, tint(colour, rng.uniform(0.85, 1.1)))
            line(image, strip[0], strip[3], tint(colour, 0.65), 2)
    if kind == "tiles":
        for depth in np.linspace(0, 1, 7)[1:] ** 1.6:
            y = base + depth * (STAGE_H - base)
            line(image, (0, y), (STAGE_W, y), tint(colour, 0.65), 2)
    add_texture(image[base:], rng, (2, 2), 7 if kind == "bare" else 3)
    add_texture(image[base:], rng, (90, 24), 7)


def paint_window(image, rng, base: int) -> None:
    x, y, w, h = rng.integers(20, 700), rng.integers(40, 150), rng.integers(70, 150), rng.integers(80, 150)
    frame = random_colour(rng, (0, 0.3), (0.3, 0.95))
    rectangle(image, x - 6, y - 6, x + w + 6, y + h + 6, frame)
    fill_gradient(image[y:y + h, x:x + w], tint((215, 230, 245), rng.uniform(0.7, 1)), (150, 175, 190))
    rectangle(image, x + w // 2 - 2, y, x + w // 2 + 2, y + h, frame)
    rectangle(image, x, y + h // 2 - 2, x + w, y + h // 2 + 2, frame)


def paint_poster(image, rng, base: int) -> None:
    x, y, w, h = rng.integers(20, 720), rng.integers(60, 220), rng.integers(40, 90), rng.integers(50, 110)
    rectangle(image, x, y, x + w, y + h, random_colour(rng))
    rectangle(image, x + w // 5, y + h // 5, x + 4 * w // 5, y + h // 2, random_colour(rng))
    for top in (y + 6 * h // 10, y + 7 * h // 10, y + 8 * h // 10):
        rectangle(image, x + w // 5, top, x + 4 * w // 5, top + 3, (240, 240, 240))


def paint_wall(image, rng, base: int) -> None:
    """An indoor wall of plaster, brick or panels, with windows and posters."""
    colour = random_colour(rng, (0.05, 0.5), (0.4, 0.95))
    fill_gradient(image[:base], tint(colour, 0.85), colour)
    kind = rng.choice(["plaster", "brick", "panels", "wainscot"])
    if kind == "brick":
        for row, y in enumerate(range(0, base, 18)):
            for x in range(-(row % 2) * 24, STAGE_W, 48):
                bottom = min(y + 15, base - 1)
                rectangle(image, x, y, x + 45, bottom, tint(colour, rng.uniform(0.72, 0.98)))
    elif kind == "panels":
        for x in range(int(rng.integers(0, 90)), STAGE_W, 96):
            line(image, (x, 0), (x, base), tint(colour, 0.7), 3)
    elif kind == "wainscot":
        rectangle(image, 0, base - 120, STAGE_W, base, random_colour(rng, (0.1, 0.6), (0.3, 0.8)))
    add_texture(image[:base], rng, (2, 2), 3)
    add_texture(image[:base], rng, (120, 90), 6)
    for paint in rng.permutation([paint_window] * rng.integers(0, 4) + [paint_poster] * rng.integers(0, 4)):
        paint(image, rng, base)
    rectangle(image, 0, base - 8, STAGE_W, base, tint(colour, 0.5))


def paint_tree(image, rng, base: int) -> None:
    x, height = rng.uniform(0, STAGE_W), rng.uniform(150, 330)
    foot = base + rng.uniform(0, 20)
    limb(image, point(x, foot), point(x + rng.uniform(-12, 12), foot - height), 11, 6, (95, 70, 50))
    leaf = tint((72, 118, 52), rng.uniform(0.6, 1.25))
    for _ in range(16):
        centre = point(x + rng.normal(0, 36), foot - height + rng.normal(0, 32))
        ball(image, centre, rng.uniform(20, 38), tint(leaf, rng.uniform(0.75, 1.2)))


def paint_building(image, rng, base: int) -> None:
    x, w, height = rng.integers(-60, 720), rng.integers(90, 220), rng.integers(120, 330)
    colour = random_colour(rng, (0.05, 0.45), (0.35, 0.85))
    rectangle(image, x, base - height, x + w, base, colour)
    pane = tint((170, 190, 205), rng.uniform(0.4, 1.1))
    for y in range(base - height + 14, base - 24, 36):
        for window in range(x + 12, x + w - 22, 32):
            rectangle(image, window, y, window + 16, y + 20, pane)


def paint_outdoors(image, rng, base: int) -> None:
    """Sky with clouds, then a tree line and trees, or houses."""
    haze = rng.uniform(0.75, 1.0)
    zenith = ((128, 170, 214), (168, 186, 204), (196, 198, 202), (214, 178, 160))[rng.integers(4)]
    fill_gradient(image[:base], tint(zenith, haze), tint((235, 236, 238), haze))
    add_texture(image[:base], rng, (110, 45), 10)
    crest = base - 45 + np.cumsum(rng.normal(0, 6, 41))
    outline = [(0, base), *zip(np.linspace(0, STAGE_W, 41), crest, strict=True), (STAGE_W, base)]
    polygon(image, outline, tint((88, 112, 84), rng.uniform(0.7, 1.2)))
    for _ in range(rng.integers(0, 4)):
        paint_building(image, rng, base)
    for _ in range(rng.integers(1, 5)):
        paint_tree(image, rng, base)
    add_texture(image[:base], rng, (2, 2), 4)


def draw_rod(image, stage: Stage) -> None:
    """The bar itself, without its posts."""
    left, right = stage.bar_x - stage.bar_half, stage.bar_x + stage.bar_half
    line(image, (left, stage.bar_y), (right, stage.bar_y), tint(stage.bar_colour, 0.6), 9)
    line(image, (left, stage.bar_y - 2), (right, stage.bar_y - 2), stage.bar_colour, 4)


def paint_bar(image, stage: Stage) -> None:
    for x in (stage.bar_x - stage.bar_half, stage.bar_x + stage.bar_half):
        shadow(image, x, GROUND - 20, 34, 10)
        limb(image, point(x, stage.bar_y - 8), point(x, GROUND - 22), 7, 7, stage.bar_colour)
        limb(image, point(x - 22, GROUND - 20), point(x + 22, GROUND - 20), 5, 5, stage.bar_colour)
    draw_rod(image, stage)


def paint_bag(image, rng, base: int) -> None:
    x, y = rng.choice([rng.uniform(90, 260), rng.uniform(540, 710)]), rng.uniform(190, 230)
    colour = random_colour(rng)
    line(image, (x, 0), (x, y), (70, 70, 75), 3)
    shadow(image, x, base + 40, 46, 12, 0.3)
    limb(image, point(x, y), point(x, y + 130), 30, 32, colour)
    for stripe in (14, 100):
        rectangle(image, x - 30, y + stripe, x + 30, y + stripe + 12, tint(colour, 0.5))


def paint_mat(image, rng, base: int) -> None:
    x, half, slant = rng.uniform(330, 470), rng.uniform(150, 260), rng.uniform(-30, 30)
    colour, top = random_colour(rng), GROUND - rng.uniform(25, 45)
    far, near = (x - half + slant, x + half + slant), (x + half + 30, x - half - 30)
    corners = np.array([(far[0], top), (far[1], top), (near[0], 530), (near[1], 530)])
    polygon(image, corners + point(0, 6), tint(colour, 0.5))
    polygon(image, corners, colour)


def paint_ropes(image, rng, base: int) -> None:
    foot, white = base + 22, (235, 235, 235)
    colours = random_colour(rng, (0.5, 0.9)), white, random_colour(rng, (0.5, 0.9))
    posts = (rng.uniform(40, 150), rng.uniform(650, 760))
    for i, colour in enumerate(colours):
        y = foot - 130 + 42 * i
        line(image, (posts[0], y), (posts[1], y), colour, 5)
    for x in posts:
        limb(image, point(x, foot - 150), point(x, foot), 9, 9, colours[0])


def paint_bench(image, rng, base: int) -> None:
    x, y, colour = rng.uniform(60, 700), base + rng.uniform(0, 15), random_colour(rng)
    shadow(image, x, y + 42, 80, 10)
    for leg in (-45, 45):
        rectangle(image, x + leg - 4, y, x + leg + 4, y + 42, (60, 60, 64))
    limb(image, point(x - 58, y), point(x + 58, y), 10, 10, colour)


def paint_bystander(image, rng, base: int) -> None:
    """Somebody who stands and watches, farther away than the actors."""
    person, x = random_person(rng), rng.choice([rng.uniform(60, 260), rng.uniform(540, 740)])
    person.unit *= rng.uniform(0.62, 0.95)
    u, foot = person.unit, base + rng.uniform(18, 60)
    face, flip = int(rng.integers(0, 2)), int(rng.choice([-1, 1]))
    wide = 0.85 if face == 0 else 0.2
    pairs = np.array([(-wide * u, 0.0), (wide * u, 0.0)])
    neck = point(x, foot - 6.4 * u)
    shoulders, hips = neck + point(0, 0.3 * u) + pairs, point(x, foot - 3.9 * u) + 0.5 * pairs
    hanging = rng.uniform([(-0.5, 1.2), (-0.3, 1.2)], [(0.3, 2.6), (0.5, 2.6)]) * u
    bend = (1, -1) if face == 0 else (flip, flip)
    elbows, hands = reach(shoulders, shoulders + hanging, 1.45 * u, 1.3 * u, bend)
    ankles = point(x, foot) + 0.55 * pairs
    toes = ankles + ((0.6 * flip * u, 2) if face == 1 else (0, 0.2 * u))
    shadow(image, x, foot + 3, 1.6 * u, 0.4 * u)
    pose = Pose(neck=neck, head=neck - (0, 0.85 * u), up=point(0, -1), shoulders=shoulders, elbows=elbows, hands=hands,
                hips=hips, knees=(hips + ankles) / 2, ankles=ankles, toes=toes, face=face, flip=flip)
    draw_person(image, person, pose)


def paint_stage(rng, needs_bar: bool, bystanders: int) -> Stage:
    """A random scene: a gym, a hall or a place outdoors, with things and people that belong to no class.

    Its `background` is (600, 800, 3) RGB uint8; the bar is where it says, or would be.
    """
    image = np.empty((STAGE_H, STAGE_W, 3), np.uint8)
    base = int(rng.integers(365, 430))
    (paint_outdoors if rng.random() < 0.4 else paint_wall)(image, rng, base)
    paint_floor(image, rng, base)
    stage = Stage(background=image, bar_x=rng.uniform(375, 425), bar_y=rng.uniform(108, 126),
                  bar_half=rng.uniform(120, 190), bar_colour=random_colour(rng, (0, 0.7), (0.3, 0.9)))
    for paint, chance in ((paint_ropes, 0.35), (paint_bag, 0.4), (paint_bench, 0.35), (paint_mat, 0.5)):
        if rng.random() < chance:
            paint(image, rng, base)
    for _ in range(bystanders):
        paint_bystander(image, rng, base)
    if rng.random() < 0.7 or needs_bar:
        paint_bar(image, stage)
    return stage


# ---------------------------------------------------------------- actions
# Each gives draw(image, t), t in seconds, and where the camera looks: x.

def repetitions(rng) -> Callable[[float], float]:
    """A movement between 0 and 1 and back, over and over, with a random phase, period and rest."""
    period, phase = rng.uniform(1.1, 2.1), rng.uniform(0, 1)
    rest, depth = rng.uniform(0.8, 1.5), rng.uniform(0.9, 1)
    return lambda t: depth * (0.5 - 0.5 * np.cos(2 * np.pi * (t / period + phase))) ** rest


def pull_ups(group_rng, rng, stage: Stage):
    """One person who hangs from the bar, seen from the front or from behind."""
    person, face = random_person(group_rng), int(group_rng.choice([0, -1]))
    u, grip, width = person.unit, group_rng.uniform(1.25, 1.75), group_rng.uniform(0.85, 1.0)
    tuck, spread = group_rng.uniform(0.45, 1.0), group_rng.uniform(0.1, 0.4)
    height, sway, tempo = repetitions(rng), rng.uniform(0.01, 0.05), rng.uniform(2.5, 4)
    pairs = np.array([(-width * u, 0.0), (width * u, 0.0)])

    def draw(image, t):
        up, swing = height(t), sway * np.sin(tempo * t)
        neck = point(stage.bar_x, stage.bar_y + (2.45 - 2.0 * up) * u)
        down = point(np.sin(swing), np.cos(swing))
        shoulders = neck + point(0, 0.3 * u) + pairs
        hips = neck + 2.65 * u * down + 0.5 * pairs
        legs = point(np.sin(2 * swing), np.cos(2 * swing))
        knees = hips + 1.85 * u * legs + pairs * spread * 0.5
        ankles = knees + 1.8 * u * (tuck - 0.15 * up) * legs - pairs * spread * 0.6
        hands = point(stage.bar_x, stage.bar_y) + (grip * pairs / width)
        elbows, _ = reach(shoulders, hands, 1.42 * u, 1.4 * u, (-1, 1))
        pose = Pose(neck=neck, head=neck - (0, 0.85 * u), up=point(0.1 * np.sin(t), -1), shoulders=shoulders,
                    elbows=elbows, hands=hands, hips=hips, knees=knees, ankles=ankles,
                    toes=ankles + point(0, 0.5 * u), face=face, flip=1)
        shadow(image, stage.bar_x, GROUND - 12, 60, 14, 0.4)
        draw_person(image, person, pose, rod=stage if face == 0 else None)

    return draw, stage.bar_x


def push_ups(group_rng, rng, stage: Stage):
    """One person on hands and toes, seen from the side."""
    person = random_person(group_rng)
    u, squeeze, slope = person.unit, group_rng.uniform(0.82, 1.0), group_rng.uniform(-0.02, 0.14)
    depth = np.array([(0.35 * u, -group_rng.uniform(0.15, 0.5) * u), (0.0, 0.0)])
    lowering, sag, gaze = repetitions(rng), rng.uniform(-0.12, 0.12), rng.uniform(-0.5, 0.1)
    ground, x = GROUND - group_rng.uniform(0, 20), stage.bar_x + group_rng.uniform(-20, 20) + 3 * u

    def seen(points):
        """The side view, turned slightly towards the camera."""
        away = points - (x, ground)
        return (x, ground) + away * (squeeze, 1) + away[..., :1] * (0, slope)

    def draw(image, t):
        heel = point(x - 5.75 * u, ground - 0.75 * u)
        lift = (2.55 - 1.65 * lowering(t)) * u - 0.75 * u
        along = point(np.sqrt((6.3 * u) ** 2 - lift**2), -lift) / (6.3 * u)
        normal = point(along[1], -along[0])
        shoulders = heel + 6.3 * u * along + depth
        hips = heel + 3.75 * u * along + sag * u * normal + depth
        hands = np.tile(point(x, ground - 0.15 * u), (2, 1)) + depth
        elbows, _ = reach(shoulders, hands, 1.4 * u, 1.35 * u, (1, 1))
        neck = heel + 6.55 * u * along + 0.1 * u * normal
        head = neck + 0.85 * u * (along + 0.15 * normal)
        ankles = np.tile(heel, (2, 1)) + depth
        joints = {"neck": neck, "head": head, "shoulders": shoulders, "elbows": elbows, "hands": hands, "hips": hips,
                  "knees": (hips + ankles) / 2, "ankles": ankles, "toes": ankles + point(0.15 * u, 0.6 * u)}
        pose = Pose(up=along + point(0, gaze), face=1, flip=1, **{name: seen(joint) for name, joint in joints.items()})
        shadow(image, *seen(point(x - 2.7 * u, ground + 6)), 4.2 * u * squeeze, 22)
        draw_person(image, person, pose)

    return draw, x - 3 * u


def random_punches(rng) -> Callable[[float], tuple[float, int, str]]:
    """One boxer's punches: how far the current one is out, 0 to 1, its hand (1 is the leading one) and kind."""
    punches, begin = [], rng.uniform(-0.2, 0.4)
    while begin < MAX_FRAMES / FPS:
        duration, kind = rng.uniform(0.36, 0.55), str(rng.choice(["straight", "straight", "hook"]))
        punches.append((begin, duration, int(rng.integers(0, 2)), kind))
        begin += duration + rng.choice([rng.uniform(0.0, 0.15), rng.uniform(0.3, 0.7)])

    def extension(t):
        for start, duration, hand, kind in punches:
            if start <= t < start + duration:
                return float(np.sin(np.pi * ((t - start) / duration) ** 0.7)), hand, kind
        return 0.0, 0, "straight"

    return extension


def boxer_pose(person: Person, x, flip, bob, attack, target, recoil) -> Pose:
    """A boxer at x who faces `flip`: fists up, one of them on its way to `target` (x, y)."""
    u, (out, hand, kind) = person.unit, attack
    forward = point(flip, 0)
    pelvis = point(x, GROUND - (3.45 - 0.2 * bob) * u) + 0.55 * out * u * forward
    neck = pelvis + (0, -2.45 * u) + (0.35 + 0.55 * out - 0.5 * recoil) * u * forward
    turn = 0.5 + (0.35 * out if hand == 0 else -0.1 * out)
    shoulders = np.array([neck + (turn - 0.75) * u * 1.6 * forward, neck + (0.9 - turn) * u * 1.2 * forward])
    shoulders = shoulders + point(0, 0.3 * u)
    guard = np.array([neck + 0.85 * u * forward + (0, -0.05 * u), neck + 1.45 * u * forward + (0, -0.15 * u)])
    guard = guard + point(0, 0.12 * bob * u)
    hands = guard.copy()
    hands[hand] = (1 - out) * guard[hand] + out * target
    if kind == "hook":
        hands[hand] = hands[hand] + (0, -1.1 * u * out * (1 - out)) - 0.2 * u * out * forward
    elbows, hands = reach(shoulders, hands, 1.42 * u, 1.4 * u, (flip, flip))
    hips = pelvis + np.array([(-0.2 * u, 0.0), (0.2 * u, 0.0)]) * flip
    ankles = np.array([(x - 1.15 * flip * u, GROUND - 10), (x + 1.05 * flip * u, GROUND)])
    knees, _ = reach(hips, ankles, 1.85 * u, 1.8 * u, (-flip, -flip))
    head = neck - (0, 0.8 * u) + (0.15 - 0.35 * recoil) * u * forward
    up = point((0.25 - 0.5 * recoil) * flip, -1)
    toes = ankles + point(0.6 * flip * u, 3)
    return Pose(neck=neck, head=head, up=up, shoulders=shoulders, elbows=elbows, hands=hands, hips=hips, knees=knees,
                ankles=ankles, toes=toes, face=1, flip=flip)


def punch(group_rng, rng, stage: Stage):
    """Two boxers who face each other, seen from the side."""
    people = [random_person(group_rng), random_person(group_rng)]
    middle, gap = stage.bar_x + group_rng.uniform(-25, 25), group_rng.uniform(2.25, 2.5) * people[0].unit
    punches = [random_punches(rng), random_punches(rng)]
    tempo, phase, drift = rng.uniform(7, 11), rng.uniform(0, 6, 4), rng.uniform(6, 16)

    def draw(image, t):
        attacks = [extension(t) for extension in punches]
        circle = drift * np.sin(1.5 * t + phase[2])
        for k in np.argsort([attack[0] for attack in attacks]):
            flip, other = (1, -1)[k], 1 - k
            bob = np.sin(tempo * t + phase[k])
            x = middle + circle - flip * (gap + 6 * np.sin(2.3 * t + phase[k]))
            recoil = max(0.0, attacks[other][0] - 0.6) / 0.4 * (1 - attacks[k][0])
            u = people[other].unit
            aim = point(middle + circle + flip * (gap - 1.25 * u), GROUND - 6.4 * u)
            shadow(image, x, GROUND + 4, 72, 15)
            pose = boxer_pose(people[k], x, flip, bob, attacks[k], aim, recoil)
            draw_person(image, people[k], pose, gloves=True)

    return draw, middle


ACTIONS = {"PullUps": pull_ups, "Punch": punch, "PushUps": push_ups}


# ---------------------------------------------------------------- camera

def random_camera(rng, look: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """A hand-held camera's framing, mirroring, shake, light and noise: (stage image, frame index) -> RGB frame."""
    scale, angle = rng.uniform(0.44, 0.53), rng.uniform(-3, 3)
    centre = (look, 292) + rng.uniform(-1, 1, 2) * (38, 12)
    mirrored, shake = rng.random() < 0.5, rng.uniform(0, 1.6)
    rates, phases, zoom = rng.uniform(1, 9, (2, 3)), rng.uniform(0, 6.3, (2, 3)), rng.uniform(-0.04, 0.04)
    gain, gamma, warmth = rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.25), rng.uniform(-0.1, 0.1)
    ramp = np.linspace(0, 1, 256)[:, None] ** gamma * 255 * gain * (1 + warmth * np.array([1, 0, -1]))
    light = np.clip(ramp, 0, 255).astype(np.uint8)[None]
    noise = rng.normal(0, rng.uniform(1, 5), (HEIGHT + 32, WIDTH + 32, 3)).astype(np.int16)
    offsets = rng.integers(0, 32, (MAX_FRAMES, 2))

    def shoot(image, i):
        t = i / FPS
        matrix = cv2.getRotationMatrix2D(tuple(map(float, centre)), angle, scale * (1 + zoom * t / 4))
        matrix[:, 2] += (WIDTH / 2, HEIGHT / 2) - centre + shake * np.sin(rates * t + phases).sum(axis=1)
        if mirrored:
            matrix[0] = -matrix[0] + (0, 0, WIDTH - 1)
        frame = cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101)
        y, x = offsets[i]
        return cv2.add(cv2.LUT(frame, light), noise[y:y + HEIGHT, x:x + WIDTH], dtype=cv2.CV_8U)

    return shoot


# ---------------------------------------------------------------- clips and files

def check_request(classes, group: int, clip: int, seed: int) -> None:
    if unknown := [label for label in classes if label not in ACTIONS]:
        raise ValueError(f"cannot render {', '.join(map(repr, unknown))}; classes are {', '.join(ACTIONS)}")
    if group < 1 or clip < 1 or seed < 0:
        raise ValueError(f"groups and clips count from 1 and seeds from 0, not {group}, {clip} and {seed}")


def render_clip(label: str, group: int, clip: int, seed: int = 0) -> np.ndarray:
    """One clip, a pure function of its arguments: (T, 240, 320, 3) RGB uint8, T from 50 to 100.

    Groups and clips count from 1, seeds from 0; people, scene and bar are the group's.

    Raises:
        ValueError: unknown label, or a number below its range.
    """
    check_request([label], group, clip, seed)
    index = list(ACTIONS).index(label)
    group_rng, rng = (np.random.default_rng([seed, index, group, number]) for number in (0, clip))
    length = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
    people = int(group_rng.integers(2, 5))
    stage = paint_stage(group_rng, label == "PullUps", people - (2 if label == "Punch" else 1))
    draw, look = ACTIONS[label](group_rng, rng, stage)
    shoot = random_camera(rng, look)
    frames = np.empty((length, HEIGHT, WIDTH, 3), np.uint8)
    for i in range(length):
        image = stage.background.copy()
        draw(image, i / FPS)
        frames[i] = shoot(image, i)
    return frames


def write_clip(path: Path, label: str, group: int, clip: int, seed: int) -> None:
    with opencv_without_threads(), atomic_path(path) as temporary:
        frames = render_clip(label, group, clip, seed)
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"XVID"), FPS, (WIDTH, HEIGHT))
        if not writer.isOpened():
            raise RuntimeError(f"cannot write {path}: install opencv-python from PyPI, which encodes XviD, "
                               "or choose a folder that you can write to")
        for frame in frames:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        if int(cv2.VideoCapture(str(temporary)).get(cv2.CAP_PROP_FRAME_COUNT)) != len(frames):
            raise RuntimeError(f"{path} came out incomplete: free some space on its disk and run again")


def claim_folder(root: Path, seed: int) -> None:
    """Records seed and renderer in `root`, which must not have been rendered with others."""
    path, record = root / "demo.json", {"seed": int(seed), "renderer": VERSION}
    try:
        found = read_json(path) or ("an unknown seed" if any(root.glob("*/*.avi")) else None)
        if found is None:
            write_json(path, record)
        elif found != record:
            raise ValueError(f"{root} was rendered with {found}, not with {record}: delete it or choose another")
    except OSError as error:
        raise RuntimeError(f"cannot write to {root} ({error.strerror}): make it writable or choose another") from error


def render_dataset(root=DEMO_ROOT, classes=CLASSES, groups: int = 16, clips: int = 3, seed: int = 0,
                   workers: int | None = None) -> Path:
    """Renders the clips that `root` lacks; with all of them there it touches nothing.

    There are `groups` per class and `clips` per group. The same seed gives the same frames, whatever the number of
    workers: processes, by default one per CPU that this one may use. A `demo.json` remembers seed and renderer.

    Raises:
        ValueError: unknown class, a number below its range, or a folder rendered with another seed.
        RuntimeError: the folder can't be written to, or OpenCV has no XviD encoder.
    """
    root, classes = Path(root), list(classes)
    check_request(classes, groups, clips, seed)
    claim_folder(root, seed)
    wanted = product(classes, range(1, groups + 1), range(1, clips + 1))
    tasks = {root / label / f"v_{label}_g{group:02d}_c{clip:02d}.avi": (label, group, clip, seed)
             for label, group, clip in wanted}
    tasks = {path: clip for path, clip in tasks.items() if not path.exists()}
    if tasks:
        remove_abandoned(root)
        pool = Parallel(min(workers or cores(), len(tasks)), return_as="generator", idle_worker_timeout=IDLE_SECONDS)
        done = pool(delayed(write_clip)(path, *clip) for path, clip in tasks.items())
        list(tqdm(done, total=len(tasks), desc="rendering", disable=None))  # None: where nobody sees it
    return root
