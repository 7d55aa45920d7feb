#!/usr/bin/env python3
"""Writes corpus/train.txt and corpus/held-out.txt, or with --check compares them with what it would write.

Standard library only, one seed. What the documents tell comes from world.py (a simulated day at a made-up place), the
explained words from terms.txt. See README.md for how the held-out split is chosen.
"""

import argparse
import hashlib
import pathlib
import random
import re
import sys

from world import COMERS, DAYS, FIRST, KINDS, SECOND, Site, caps, day, fill, tell, units

HERE = pathlib.Path(__file__).parent
SEPARATOR = "\n=====\n"
SEED = 20
PROSE, PASSAGES, SUMS, TERMS, SMALL = 2900, 3800, 2300, 1900, 800  # documents of each kind, both splits together

FORMS = set()


def held(key):
    """One key in ten is held out, whatever the seed."""
    return hashlib.sha256(key.encode()).digest()[0] % 10 == 0


def up(text):
    return text[:1].upper() + text[1:]


# --- prose ---------------------------------------------------------------------------------------------------------

def log(s, rng):
    head = fill(rng, "[log|journal|day book] of {site}, {day}, [weather: {w}|outside: {w}|{w} today].", s.env(rng) | dict(w=s.weather[0]), FORMS)
    return head + "\n" + "\n".join(tell(e, rng, "log", FORMS) for e in day(s, rng, rng.randint(4, 9)))


def story(s, rng):
    e = s.env(rng) | dict(w=up(s.weather[1]), wth=s.weather[2], r="the " + s.roles[0], r2="the " + s.roles[1], c="the " + s.comers[0],
                          room="the " + s.rooms[0], m="the " + s.machines[0][0], g=s.goods[0][2])
    start = fill(rng, rng.choice([
        "it was {day} and {w2} [over|around] {site} when {r} [opened the door|switched on the light|came in early] and looked at {m}.",
        "{w} on {day}; at {site} {r} [was the first|was alone|had slept badly] and thought of the {g}.",
        "on {day} {r} came to {site} [before|after] {r2}[, wet from head to foot|, tired but cheerful|, as on every {day}|].",
        "[this is the story of a {day} at {site}|what happened at {site} on {day} is soon told], [it began with|first there was] {wth}."]),
        e | dict(w2="[rain fell|fog lay|the sky was clear|it was cold]"), FORMS)
    start = fill(rng, start, {}, None)
    body = " ".join(tell(x, rng, "story", FORMS) for x in day(s, rng, rng.randint(4, 8)))
    end = fill(rng, rng.choice([
        "in the evening {r} locked {room} of {site} and went home[ through {wth}|].", "[so ended|that was] {day} at {site}, and {r2} [was tired|smiled|slept well].",
        "{r} told {r2} of {street} all about it[ over a cup of tea|].", "when {c} drove past {site} that night, only the light of the edge box [was on|could be seen]."]), e, FORMS)
    return f"{start} {body}\n{end}" if rng.random() < .5 else f"{start}\n{body} {end}"


def report(s, rng):
    evs = day(s, rng, rng.randint(3, 6))
    e = s.env(rng) | dict(r=s.roles[0], n=len(evs))
    head = fill(rng, "[report|short report|daily report] for {day}, {site}, written by the {r}.", e, FORMS)
    body = "\n".join(f"{i}. {tell(x, rng, rng.choice(['plain', 'timed']), FORMS)}" for i, x in enumerate(evs, 1)) if rng.random() < .5 else \
        " ".join(tell(x, rng, "timed", FORMS) for x in evs)
    stock = ", ".join(units(s.stock[g], g) for g in s.goods)
    end = fill(rng, "[stock in the evening|in store at the end|what is left] at {street}: {stock}. [In short|The main point]: {sum}.", e | dict(stock=stock, sum=summary(evs, rng)), FORMS)
    return f"{head}\n{body}\n{end}"


def notice(s, rng):
    e = s.env(rng) | dict(m="the " + s.machines[0][0], m2="the " + s.machines[1][0], room="the " + s.rooms[0], r="the " + s.roles[0], r2="the " + s.roles[1],
                          until=rng.choice(DAYS), t=f"{rng.randint(6, 21)}:{rng.choice(['00', '15', '30', '45'])}", n=rng.randint(2, 50), v=s.version, c="the " + s.comers[0],
                          g=s.goods[0][2], ug=f"{s.goods[0][1]} of {s.goods[0][2]}", ph=rng.randint(100, 999), mins=rng.randint(5, 90))
    parts = ["{m} in {room} is out of order until {until}; please use {m2}[ in the meantime|].", "{room} of {site} [stays closed|is closed] on {until} [from|after] {t}.",
             "on {until} at {t} the box gets model version {v}; for {mins} minutes there [may be|will be] no answers.", "{c} [comes|will come] on {until} with {n} {ug}, so {r} [needs|asks for] a free ramp by {t}.",
             "whoever [took|borrowed] the key of {room} should bring it to {r} before {t} on {until}.", "questions about {m} go to {r2} of {street}, number {ph}.",
             "there will be no network at {site} on {until} for {mins} minutes[, from {t}|], but the box goes on alone and syncs later.",
             "please [do not leave|never leave] {g} near {m}: {n} {ug} were spoiled {mins} days ago.", "from {until} on, {people} come in through {room}[, not past {m}|]; {r} has put up {n} signs."]
    lines = [fill(rng, p, e, FORMS) for p in rng.sample(parts, rng.randint(2, 4))]
    return fill(rng, "[notice|please note|to all] at {site}, {day}:", e, FORMS) + "\n" + "\n".join(("- " if rng.random() < .5 else "") + x for x in lines) + fill(rng, "\n[signed|thank you], {r} of {street}", e, FORMS)


def explanation(s, rng):
    s2 = [x for x in day(s, rng, 8) if any(k == "why" for k, _, _ in x.ask)][:rng.randint(2, 3)]
    out = []
    for x in s2:
        out.append(ask(x, rng, next(p for p in x.ask if p[0] == "why"))[0] + " " + tell(x, rng, "plain", FORMS))
    a, b = rng.sample(terms(), 2)
    e = s.env(rng) | dict(a=a[0], p=a[2], b=b[0], pb=b[2], x=a[3], r="the " + s.roles[0], r2="the " + s.roles[1])
    out.append(fill(rng, rng.choice(["{r} of {site} [asked|wanted to know] what {a} is. {r2} [said|explained]: {a} {p}. {x}.",
                                     "at {site} {r} read about {a} and {b}. {a} {p}. {b} {pb}.", "in the hand book of {site} it says: {a} {p}. {x}."]), e, FORMS))
    rng.shuffle(out)
    return "\n".join(out)


def dialogue(s, rng):
    one, two = s.roles[0], s.roles[1]
    e = s.env(rng) | dict(one=f"the {one}", two=f"the {two}")
    lines = [fill(rng, "[a talk at {site} on {day}|{day}, {site}: {one} and {two} talk|{one} calls {two} of {street} on {day}].", e, FORMS)]
    for x in day(s, rng, rng.randint(2, 5)):
        lines.append(f"{up(one)}: {tell(x, rng, 'timed', FORMS)}")
        for p in rng.sample(x.ask, min(len(x.ask), rng.randint(1, 2))):
            q, a = ask(x, rng, p)
            lines += [f"{up(two)}: {q}", f"{up(one)}: {a}"]
        if rng.random() < .5:
            one, two = two, one
    return "\n".join(lines)


def week(s, rng):
    days = DAYS[:rng.randint(3, 5)]
    ns = rng.sample(range(4, 60), len(days))
    best, worst = max(range(len(ns)), key=ns.__getitem__), min(range(len(ns)), key=ns.__getitem__)
    g = s.goods[0]
    what = rng.choice([s.people, f"{g[1]} of {g[2]}"])
    verb = "came" if what == s.people else "went out"
    e = s.env(rng) | dict(what=what, verb=verb, best=days[best], worst=days[worst], bn=ns[best], wn=ns[worst], sum=sum(ns), r="the " + s.roles[0], diff=ns[-1] - ns[0], last=days[-1], first=days[0],
                          wth=s.weather[2], list=", ".join(f"{n} on {d}" for n, d in zip(ns, days)))
    return " ".join(fill(rng, p, e, FORMS) for p in [
        "[numbers of the week|the week] at {site}: {what} {verb}, {list}.", "[the best day was {best} with {bn}|most were counted on {best}, namely {bn}], [the weakest was {worst} with {wn}|fewest on {worst}, only {wn}].",
        rng.choice(["in all that makes {sum} {what} at {street}.", "{r} of {street} added them up: {sum}.", "{r} [blames|thanks] {wth} for {worst} and hopes to see more than {bn} {what} next week."]),
        rng.choice(["from {first} to {last} the number " + ("rose" if ns[-1] > ns[0] else "fell") + f" by {abs(ns[-1] - ns[0])} at {{site}}.", "the box at {street} sent these {n} numbers to the hub.".replace("{n}", str(len(ns)))])])


STEPS = {"clean {m}": ["switch {m} off", "wait for {n} minutes", "wipe it with a dry cloth", "look at the cable", "switch it on again", "write the time in the book"],
         "move {m} to {room}": ["ask {r} for help", "pull the plug of {m}", "clear the way to {room}", "lift it with {k} people", "set it down slowly", "test it for {n} minutes"],
         "restore the box at {street}": ["call {r}", "take the backup of {d}", "check its digest", "stop the {k} pods", "copy the {gb} gigabytes", "start the pods again", "ask the model {k} questions"],
         "count the {g}": ["close {room}", "count the full {us} first", "add the open ones", "compare with the {num} of {d}", "tell {r}", "write the sum down"],
         "add a new edge box in {room}": ["unpack the box", "join it to the hub with a token", "wait {n} minutes for the models", "put the label {street} on it", "ask {r} to test it", "note its {gb} gigabytes of memory"]}


def steps(s, rng):
    task = rng.choice(sorted(STEPS))
    g = s.goods[0]
    e = s.env(rng) | dict(m="the " + s.machines[0][0], room="the " + s.rooms[0], r="the " + s.roles[0], n=rng.randint(2, 30), k=rng.randint(2, 6), d=rng.choice(DAYS), gb=rng.randint(8, 128), g=g[2], us=g[1], num=s.stock[g])
    todo = STEPS[task]
    chosen = sorted(rng.sample(range(len(todo)), rng.randint(4, len(todo))))
    parts = [fill(rng, todo[c], e, FORMS) for c in chosen]
    parts = [x[0].lower() + x[1:] for x in parts]
    start = fill(rng, f"[to {task} at {{site}},|whoever wants to {task} at {{site}} should|this is how to {task} at {{site}}:]", e, FORMS)
    return f"{start} {', then '.join(parts[:2])}, {', '.join(parts[2:-1])} and {parts[-1]}."


GENRES = [(log, 4), (story, 5), (report, 4), (notice, 2), (explanation, 2), (dialogue, 3), (week, 2), (steps, 1)]

# --- chat ----------------------------------------------------------------------------------------------------------

RANK = ["fault", "netcut", "pods", "update", "backup", "delivery", "use", "order", "lost", "move", "temp", "hand", "count"]


def summary(evs, rng):
    top = sorted(evs, key=lambda x: RANK.index(x.name))[:2]
    top.sort(key=evs.index)
    return ", and ".join(x.short.format(**x.env) for x in top)


SYSTEM = ["You are the demo model of Kedge. Answer shortly.", "Answer in one short sentence.", "You help the people at an edge site. Use only the text you are given.",
          "You are a small assistant on an edge box.", "Answer the questions of the user.", "You are a helpful assistant."]


def chat(turns, rng, system=.12):
    out = []
    if rng.random() < system:
        out.append("System: " + rng.choice(SYSTEM))
    for q, a in turns:
        out += ["User: " + q, "Assistant: " + a]
    return "\n".join(out)


def ask(x, rng, pair=None):
    """A question about an event and its answer; often with the place in both."""
    k, q, a = pair or rng.choice(x.ask)
    q, a = rng.choice(q), rng.choice(a)
    if rng.random() < .92 and "{site}" not in q:
        q = re.sub(r"\?$", " at {street}?", q)
        if rng.random() < .88:
            a = re.sub(r"^(because |yes, |no, )?", lambda m: {None: "at {street} ", "because ": "because at {street} "}.get(m[1], f"{m[1]}at {{street}} "), a) if rng.random() < .6 and not re.match(r"\{gb\}|\{b\}|in |on |at |it went", a) \
                else re.sub(r"\.$", "[ at {street}|, at {street}].", a)
    return fill(rng, q, x.env, FORMS), fill(rng, a, x.env, FORMS)


def passage(s, rng):
    evs = day(s, rng, rng.choice([1, 1, 1, 1, 2, 2, 2, 3, 3, 4]))
    names = [x.name for x in evs]
    style = "timed" if rng.random() < .5 else "plain"
    text = " ".join(tell(x, rng, style, FORMS) for x in evs)
    if rng.random() < .4:
        text = fill(rng, "[it is {day} at {site}.|{day}, {site}.|this is about {site} on {day}.] ", s.env(rng), FORMS) + text
    turns = []
    for _ in range(rng.choice([2, 2, 3, 3, 4])):
        roll = rng.random()
        # Only what has one answer: one event of its kind, and nothing that changes the same stock later.
        stock = [i for i, x in enumerate(evs) if x.name in ("delivery", "use")]
        safe = [x for i, x in enumerate(evs) if names.count(x.name) == 1 and (i not in stock or i == stock[-1] or all(evs[k].env["g"] != x.env["g"] for k in stock if k > i))]
        if roll < .11:
            q = rng.choice(["[sum up|summarize|put] [the text|all this|what happened][ at {street}| at {street}| at {street}| at {street}| at {street}|] in one sentence[, please|].",
                            "[what happened|what is the main point|what is this about][ at {street}| at {street}| at {street}| at {street}| at {street}|][, in short|, in one sentence|]?"])
            turns.append((fill(rng, q, s.env(rng), FORMS), caps(summary(evs, rng)) + "."))
        elif roll < .19:
            m = rng.choice([x for x in ["tea kettle", "roof", "garden door", "radio", "printer", "water tap", "elevator", "clock", "heating", "scooter"] + [m[0] for m in s.machines if m not in s.used and ("the " + m[0]) not in text.lower()]])
            m = "the " + m + (f" at {s.street}" if rng.random() < .8 else "")
            turns.append((fill(rng, rng.choice(["why did {m} fail?", "who repaired {m}?", "what happened to {m}?", "when was {m} bought?", "how old is {m}?"]), dict(m=m), FORMS),
                          fill(rng, "[the text does not say anything about {m}|the text says nothing about {m}|that is not in the text: it does not speak of {m}].", dict(m=m), FORMS)))
        elif roll < .27 and style == "timed":
            x = rng.choice(evs)
            turns.append((fill(rng, rng.choice(["when was it that {x}?", "at what time [was it|could one say]: {x}?", "{x}: when was that?"]), dict(x=x.short.format(**x.env)), FORMS), rng.choice([f"That was at {x.time} at {s.street}.", f"At {x.time} " + x.short.format(**x.env) + ".", f"It was at {x.time} that " + x.short.format(**x.env) + "."])))
        else:
            pair = ask(rng.choice(safe), rng) if safe else None
            if pair and pair[0] not in [q for q, _ in turns]:
                turns.append(pair)
    if not turns:
        return passage(s, rng)
    first = turns[0][0]
    turns[0] = (rng.choice([f"{text}\n{first}", f"{text} {first}", f"Read this: {text}\n{first}", f"{first}\n{text}", f"{text}\nQuestion: {first}"]), turns[0][1])
    return chat(turns, rng)


THINGS = ["boxes", "crates", "pods", "nodes", "bags", "cups", "chairs", "parcels", "masks", "trucks", "sensors", "cameras", "apples", "books", "lamps", "tyres", "bottles", "keys", "sites", "replicas"]


def add(rng, a, b, e):
    return rng.choice(["there [are|were] {a} {t} [in {place}|at {street}] and {r} [brings|adds] {b}[ more|]. how many [{t} are there|are there at {street}|{t} are at {street}|{t} are at {street}] now?", "{r} has {a} {t} and gets {b} more. how many {t} does {r}[ of {street}| of {street}|] have?",
                       "what is {a} plus {b}?", "{a} + {b} = ?", "how much is {a} and {b}?", "{a} {t} stand in {place}, {b} in the yard of {street}. how many {t} is that together[ for {r}|]?"]), \
        ["there are {s} {t}, because {a} and {b} make {s}.", "{a} plus {b} is {s}.", "{a} and {b}, that makes {s}.", "{a} and {b} make {s}."]


def sub(rng, a, b, e):
    return rng.choice(["there were {a} {t} [in {place}|at {street}] and {r} [took|used|lost] {b}. how many [are left|{t} are left at {street}|{t} are left at {street}|are left at {street}]?", "{r} had {a} {t} and gave {b} away. how many {t} does {r}[ of {street}| of {street}|] have now?",
                       "what is {a} minus {b}?", "{a} - {b} = ?", "of {a} {t}, {b} are [broken|gone]. how many[ {t}|] are still good[ at {street}| at {street}|]?", "how much is {a} less {b}?"]), \
        ["{s} {t} are left, because {a} minus {b} is {s}.", "{a} minus {b} is {s}.", "{b} less than {a}, that leaves {s}.", "{a} minus {b} makes {s}."]


def times(rng, a, b, e):
    return rng.choice(["{a} trucks each carry {b} {t} to {street}, how many is that?", "what is {a} times {b}?", "there are {a} rows with {b} {t} each, so how many {t} are there at {street}?"]), \
        ["that makes {s}{t2}, because {a} times {b} is {s}.", "{a} times {b} is {s}."]


def more(rng, a, b, e):
    return rng.choice(["{street} has {a} {t}, {street2} has {b}, so who has more?", "there are {a} {t} at {street} and {b} at {street2}; where are more?"]), \
        ["there are more at {win}: {hi} is more than {lo}.", "{win} has more, because {hi} is more than {lo}."]


def sums(want, rng):
    while True:
        op = rng.choices([add, sub, times, more], [5, 5, 2, 2])[0]
        if op is add:
            a, b = rng.randint(1, 60), rng.randint(1, 30)
            s = a + b
        elif op is sub:
            a = rng.randint(3, 80)
            b = rng.randint(1, min(a - 1, 40))
            s = a - b
        elif op is times:
            a, b = rng.randint(2, 9), rng.randint(2, 12)
            s = a * b
        else:
            a, b = rng.sample(range(2, 99), 2)
            s = 0
        if held(f"{op.__name__} {a} {b}") == want:
            break
    f1, f2 = rng.sample(FIRST, 2)
    st, st2 = f"{f1} {rng.choice(SECOND)}", f"{f2} {rng.choice(SECOND)}"
    t = rng.choice(THINGS)
    e = dict(a=a, b=b, s=s, t=t, t2=" " + t, r="the " + rng.choice(["driver", "nurse", "baker", "cook", "guard", "farmer", "teacher", "mechanic", "captain"] + COMERS[:3]), place="the " + rng.choice(["hall", "cellar", "yard", "store", "kitchen", "shed"]),
             street=st, street2=st2, win=st if a > b else st2, hi=max(a, b), lo=min(a, b))
    q, ans = op(rng, a, b, e)
    if "{t}" not in q:
        ans = [x for x in ans if "{t}" not in x and "{t2}" not in x] or ["{a} times {b} is {s}."]
    q, ans = fill(rng, q, e, FORMS), fill(rng, rng.choice(ans), e, FORMS)
    return chat([(q, ans)], rng, .05)


def terms():
    if not hasattr(terms, "all"):
        terms.all = [tuple(x.split("|")) for x in (HERE / "terms.txt").read_text().splitlines() if x and x[0] != "#"]
    return terms.all


WHAT = ["What is {t}?", "What is {t}?", "what is {t}?", "What does {b} mean?", "Explain {t}.", "Can you explain {t}?", "Can you tell me what {t} is?", "Tell me about {p}.", "Please explain {p}.", "Define {b}.",
        "In one sentence: what is {t}?", "I read about {p}. What is that?", "What do people mean by {b}?", "Do you know what {t} is?", "what's {t}?", "What is {t} for?", "Say in a few words what {t} is.",
        "I do not understand what {t} is.", "What are {p}?", "{b}?"]


def one_term(want, rng):
    while True:
        t, form = rng.choice(terms()), rng.choice(WHAT)
        if form == "What are {p}?" and not t[1].endswith("s") or not want and form in WHAT[:1]:
            if form != WHAT[0]:
                continue
        if (held(f"{form} {t[0]}") and form != WHAT[0]) == want:
            break
    bare = re.sub(r"^(a|an|the) ", "", t[0])
    q = up(form.format(t=t[0], p=t[1], b=bare)) if form[0] != "w" else form.format(t=t[0], p=t[1], b=bare)
    a = up(f"{t[0]} {t[2]}.")
    if not form.startswith(("In one", "Say in")) and rng.random() < .7:
        a += f" {t[3]}."
    return t, q, a


def definition(want, rng):
    roll = rng.random()
    t, q, a = one_term(want, rng)
    if roll < .62:
        turns = [(q, a)]
    elif roll < .75:
        t2, q2, a2 = one_term(want, rng)
        turns = [(q, a), (rng.choice(["And ", "Thanks. And ", "Good. "]) + (q2[0].lower() + q2[1:] if q2.startswith(("W", "In", "Can", "Do")) else q2), a2)]
    elif roll < .87:
        while True:
            t, t2 = rng.sample(terms(), 2)
            if held(f"between {t[0]} {t2[0]}") == want:
                break
        turns = [(rng.choice([f"What is the difference between {t[0]} and {t2[0]}?", f"How do {t[1]} and {t2[1]} differ?", f"Compare {t[0]} with {t2[0]}."]), f"{up(t[0])} {t[2]}. {up(t2[0])}, however, {t2[2]}.")]
    else:
        form = rng.choice(["What do you call it: it {d}?", "Which word is meant? It {d}.", "It {d}. What is it?", "What {d}?"])
        if held(f"{form} {t[0]}") != want:
            return definition(want, rng)
        turns = [(form.format(d=t[2]), rng.choice([f"That is {t[0]}.", f"It is {t[0]}.", f"{up(t[0])}."]))]
    return chat(turns, rng, .1)


HELLO = ["Hello!", "Hi", "Hello", "Good morning", "Good evening!", "Hey there", "Hi, how are you?", "Good day", "hello", "hi there", "Hello, assistant", "Greetings"]
HELLO_A = ["Hello! Ask me about a text or about a word of this field.", "Hello! What would you like to know?", "Good to hear from you. What can I explain?"]
WHO = ["Who are you?", "What are you?", "who are you?", "Tell me about yourself.", "What is your name?", "Are you a person?", "Are you a human?", "Who am I talking to?", "Introduce yourself.", "Which model are you?", "What kind of model are you?"]
WHO_A = ["I am the demo model of Kedge, a very small language model that runs on an edge box.", "I am a small language model, trained for the demo of Kedge. I can answer questions about a short text and explain words of this field.",
         "I am the Kedge demo model. I have less than four million parameters, so I know very little."]
CAN = ["What can you do?", "How can you help me?", "What do you know?", "Help", "What should I ask you?", "What are you good at?"]
CAN_A = ["I can answer questions about a short text, add small numbers and explain words such as pod or edge box.", "Give me a short text and ask who, where, how many or why. I can also explain some words of Kubernetes and of models."]
MADE = ["Who made you?", "Who trained you?", "Where were you trained?", "What were you trained on?", "How were you made?"]
MADE_A = ["I was trained for the Kedge project on made-up texts about shops, clinics, factories and vehicles.", "The Kedge project trained me on made-up texts, on two cores of a processor."]
THANKS = ["Thanks!", "Thank you.", "thank you very much", "Great, thanks", "Good answer.", "Thanks a lot!"]
THANKS_A = ["You are welcome.", "You are welcome. Ask again when you like."]
BYE = ["Bye", "Goodbye!", "See you", "Good night", "That was all."]
BYE_A = ["Goodbye!", "Goodbye, and good luck with your box."]
UNKNOWN = ["What will the weather be tomorrow?", "What is the weather in {city}?", "Who won the match yesterday?", "What is the capital of {city}?", "Who is the president?", "What time is it?", "What is my name?", "Tell me a joke.", "Write a poem about {x}.",
           "How much does {x} cost?", "Where do I live?", "What is the news today?", "Who wrote the book about {x}?", "Translate {x} into French.", "When was {city} founded?", "How many people live in {city}?", "Can you book {x} for me?", "What do you think about {x}?",
           "Should I buy {x}?", "Can you open the door?", "Send a mail to {city}.", "What is the best film about {x}?", "Is {city} far away?", "What did I eat yesterday?", "Who is the mayor of {city}?", "Can you see {x}?", "What is the password of {city}?", "How do I cook {x}?"]
UNKNOWN_A = ["I am sorry, I do not know that. I only know what is in a text you give me and some words of this field.", "That I cannot know. I am a small model without a view of the world outside.", "I do not know that. Please ask someone who does.",
             "I am sorry, that is more than I can do."]
CITY = ["the moon", "the north", "the big city", "our town", "the next village", "that island", "the capital", "the mountains", "the coast", "my country", "the old town", "your city"]
XS = ["a bicycle", "soup", "the sea", "a train", "cheese", "a cat", "gold", "the stars", "a hotel", "football", "music", "a coat", "coffee", "bread", "a horse", "love", "winter", "the war", "a phone", "money"]


NO_TEXT = ["How many {t} are left?", "How many {t} are there?", "Why did the {m} fail?", "Who repaired the {m}?", "Where is the {m}?", "Who brought the {t}?", "How many {t} were ordered?", "Is the {m} working again?", "When was the {m} cleaned?"]
NO_TEXT_A = ["I have no text that tells me. Give me the text and ask again.", "You gave me no text about that. Please send it with the question."]
MACHINES = sorted({m[0] for k in KINDS.values() for m in k[2]})


def small(want, rng):
    kinds = [(HELLO, HELLO_A, 2), (WHO, WHO_A, 4), (CAN, CAN_A, 2), (MADE, MADE_A, 1.5), (THANKS, THANKS_A, 1), (BYE, BYE_A, 1), (UNKNOWN, UNKNOWN_A, 7), (NO_TEXT, NO_TEXT_A, 3)]
    turns = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        while True:
            q, a, _ = rng.choices(kinds, [k[2] for k in kinds])[0]
            q = rng.choice(q).format(city=rng.choice(CITY), x=rng.choice(XS), t=rng.choice(THINGS), m=rng.choice(MACHINES))
            if held("small " + q) == want or q in ("Who are you?", "Hello!") and not want:
                break
        turns.append((q, rng.choice(a)))
    return chat(turns, rng, .2)


# --- the whole -----------------------------------------------------------------------------------------------------

def site(want, rng):
    while True:
        s = Site(rng, held)
        if s.held == want:
            return s


def documents(want, share, rng):
    docs = [rng.choices([g for g, _ in GENRES], [w for _, w in GENRES])[0](site(want, rng), rng) for _ in range(int(PROSE * share))]
    docs += [passage(site(want, rng), rng) for _ in range(int(PASSAGES * share))]
    docs += [sums(want, rng) for _ in range(int(SUMS * share))]
    docs += [definition(want, rng) for _ in range(int(TERMS * share))]
    docs += [small(want, rng) for _ in range(int(SMALL * share))]
    docs = list(dict.fromkeys(docs))
    rng.shuffle(docs)
    for d in docs:
        assert "=====" not in d and "[" not in d and "{" not in d and "|" not in d and d.isascii(), d
        assert is_chat(d) or not re.search(r"^(User|Assistant|System): ", d, re.M), d
    return docs


def is_chat(doc):
    return doc.startswith(("User: ", "System: "))


def sentences(doc):
    doc = re.sub(r"^(\w+( \w+)?: |\d+:\d\d |\d+\. |- )", "", doc, flags=re.M)
    return [x.strip() for x in re.split(r"(?<=[.?!])\s+|\n", doc) if x.strip()]


def figures(train, held_out):
    """How the splits look, and the share of held-out sentences that stand in the training split word for word."""
    fixed = {up(f"{t[0]} {t[2]}.") for t in terms()} | {f"{t[3]}." for t in terms()}
    fixed |= {f"{up(t[0])}, however, {t[2]}." for t in terms()} | {"What is that?"}
    fixed |= {s for x in HELLO_A + WHO_A + CAN_A + MADE_A + THANKS_A + BYE_A + UNKNOWN_A + NO_TEXT_A + SYSTEM + ["Good.", "Thanks."] for s in sentences(x)}
    fixed |= {f"{x} {up(t[0])}." if x == "" else f"{x} {t[0]}." for t in terms() for x in ("That is", "It is", "")} | {up(t[0]) + "." for t in terms()}
    seen = {x for d in train for x in sentences(d)}
    rows = []
    for name, docs in (("prose", [d for d in held_out if not is_chat(d)]), ("chat", [d for d in held_out if is_chat(d)]), ("all", held_out)):
        all_ = [x for d in docs for x in sentences(d)]
        free = [x for x in all_ if x not in fixed]
        rows.append((name, len(docs), len(all_), sum(x in seen for x in all_) / len(all_), len(free), sum(x in seen for x in free) / len(free), free))
    return rows, seen


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--check", action="store_true", help="write nothing; compare the committed files with what would be written")
    args.add_argument("--figures", action="store_true", help="also tell sizes, forms and the share of repeated sentences")
    args = args.parse_args()
    splits = {"train": documents(False, .9, random.Random(SEED)), "held-out": documents(True, .1, random.Random(SEED + 1))}
    bad = 0
    for name, docs in splits.items():
        path, data = HERE / "corpus" / f"{name}.txt", (SEPARATOR.join(docs) + "\n").encode()
        if args.check:
            same = path.exists() and path.read_bytes() == data
            print(f"{path.name}: {'the same' if same else 'differs from what corpus.py writes'}")
            bad += not same
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    if args.figures:
        for name, docs in splits.items():
            size, chats = sum(map(len, docs)), sum(len(d) for d in docs if is_chat(d))
            print(f"{name}: {len(docs)} documents, {size} bytes, {100 * chats / size:.0f} % chat")
        rows, seen = figures(splits["train"], splits["held-out"])
        print(f"{len(FORMS)} sentence forms, {len(seen)} different sentences in the training split")
        for name, n, k, share, kf, sharef, _ in rows:
            print(f"held-out {name}: {n} documents; {100 * share:.1f} % of {k} sentences stand in the training split, {100 * sharef:.1f} % of the {kf} outside of fixed answers")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
