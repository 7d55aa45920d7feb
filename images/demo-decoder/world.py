"""The little world the corpus tells of: places, goods, machines, and the events of a day.

An event is made from a state (stock, machines, who is there) and changes it. It knows the sentences that may tell it and
the questions that may be asked about it, so that prose, questions and answers agree.
"""

import re

FIRST = """Alder Birch Cedar Copper Mill Harbour Station Church Castle River Garden Market Orchard Stone Silver Linden Maple
Willow Chestnut Anchor Bell Bridge Canal Falcon Heron Hazel Ivy Juniper Lantern Meadow North South East West Poplar Quarry
Raven Saddle Tanner Weaver""".split()
SECOND = "Lane Quay Street Hill Gate Yard Park Field Corner Square Road Row Court Wharf Green Crossing".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

# kind: (words for it, goods as (unit, units, good), machines as (name, class), roles, rooms, people who come, their use)
KINDS = {
    "shop": (["shop", "corner shop", "grocery"],
             [("box", "boxes", "milk"), ("crate", "crates", "apples"), ("tray", "trays", "eggs"), ("bag", "bags", "flour"),
              ("carton", "cartons", "juice"), ("sack", "sacks", "potatoes"), ("pack", "packs", "batteries")],
             [("freezer", "cold"), ("milk cooler", "cold"), ("till", "device"), ("door camera", "device"),
              ("bread oven", "heat"), ("label printer", "device"), ("sliding door", "motor")],
             ["shopkeeper", "cashier", "baker", "cleaner", "trainee"],
             ["back room", "cellar", "sales room", "attic", "hallway"], "customers", ["sold", "sold", "handed out"]),
    "clinic": (["clinic", "health centre", "practice"],
               [("box", "boxes", "masks"), ("pack", "packs", "gloves"), ("tray", "trays", "vaccine"),
                ("roll", "rolls", "bandage"), ("bottle", "bottles", "saline"), ("pack", "packs", "test strips")],
               [("vaccine fridge", "cold"), ("scanner", "device"), ("pulse monitor", "device"), ("lift", "motor"),
                ("bed pump", "motor"), ("sterilizer", "heat"), ("room camera", "device")],
               ["nurse", "doctor", "porter", "receptionist", "pharmacist"],
               ["treatment room", "pharmacy", "waiting room", "ward", "supply room"], "patients", ["used", "used up", "gave out"]),
    "factory": (["factory", "plant", "workshop"],
                [("crate", "crates", "screws"), ("sheet", "sheets", "steel"), ("drum", "drums", "paint"),
                 ("pallet", "pallets", "pipes"), ("coil", "coils", "wire"), ("box", "boxes", "valves")],
                [("press", "motor"), ("conveyor", "motor"), ("lathe", "motor"), ("paint oven", "heat"),
                 ("belt camera", "device"), ("compressor", "motor"), ("welding robot", "device")],
                ["shift lead", "operator", "welder", "inspector", "fitter"],
                ["hall", "paint shop", "tool room", "loading bay", "test room"], "workers", ["used", "processed", "used up"]),
    "depot": (["bus depot", "depot", "garage"],
              [("set", "sets", "tyres"), ("can", "cans", "oil"), ("box", "boxes", "filters"), ("pack", "packs", "fuses"),
               ("bottle", "bottles", "washer fluid"), ("box", "boxes", "brake pads")],
              [("bus", "vehicle"), ("tow truck", "vehicle"), ("charger", "device"), ("wash line", "motor"),
               ("bus camera", "device"), ("lifting ramp", "motor"), ("paint heater", "heat")],
              ["mechanic", "dispatcher", "bus driver", "electrician", "foreman"],
              ["pit", "parts room", "yard", "wash hall", "office"], "passengers", ["used", "fitted", "used up"]),
    "warehouse": (["warehouse", "store house", "freight hall"],
                  [("pallet", "pallets", "rice"), ("parcel", "parcels", "books"), ("crate", "crates", "lamps"),
                   ("roll", "rolls", "carpet"), ("box", "boxes", "shoes"), ("barrel", "barrels", "olives")],
                  [("forklift", "vehicle"), ("sorter", "motor"), ("gate", "motor"), ("gate camera", "device"),
                   ("cold room", "cold"), ("hand scanner", "device"), ("wrapping machine", "heat")],
                  ["picker", "guard", "warehouse clerk", "loader", "forklift driver"],
                  ["ramp hall", "second aisle", "office", "packing room", "gate house"], "trucks", ["shipped", "sent out", "loaded"]),
    "farm": (["farm", "dairy farm", "nursery"],
             [("sack", "sacks", "seed"), ("bale", "bales", "hay"), ("crate", "crates", "pears"), ("can", "cans", "milk"),
              ("bag", "bags", "feed"), ("tray", "trays", "seedlings")],
             [("water pump", "motor"), ("tractor", "vehicle"), ("milking robot", "device"), ("greenhouse heater", "heat"),
              ("milk tank", "cold"), ("barn camera", "device"), ("feed mixer", "motor")],
             ["farmer", "vet", "farm hand", "gardener", "apprentice"],
             ["barn", "greenhouse", "milk room", "shed", "tool house"], "visitors", ["used", "sold", "used up"]),
    "port": (["ferry port", "port", "boat house"],
             [("coil", "coils", "rope"), ("crate", "crates", "fish"), ("drum", "drums", "fuel"), ("box", "boxes", "life vests"),
              ("bag", "bags", "ice"), ("pallet", "pallets", "salt")],
             [("crane", "motor"), ("ferry", "vehicle"), ("ice machine", "cold"), ("quay camera", "device"),
              ("radar", "device"), ("boat winch", "motor"), ("deck heater", "heat")],
             ["captain", "deck hand", "harbour clerk", "crane operator", "ticket seller"],
             ["customs hall", "engine room", "ticket office", "deck house", "boat shed"], "boats", ["loaded", "used", "sent out"]),
    "school": (["school", "library", "youth centre"],
               [("box", "boxes", "chalk"), ("pack", "packs", "paper"), ("stack", "stacks", "books"), ("tray", "trays", "sandwiches"),
                ("carton", "cartons", "water"), ("bag", "bags", "sand")],
               [("copier", "device"), ("boiler", "heat"), ("kitchen fridge", "cold"), ("projector", "device"),
                ("school van", "vehicle"), ("air fan", "motor"), ("hall camera", "device")],
               ["teacher", "caretaker", "cook", "librarian", "secretary"],
               ["hall", "kitchen", "reading room", "gym", "staff room"], "pupils", ["used", "handed out", "used up"]),
}
COMERS = ["driver", "courier", "supplier", "technician", "inspector from the head office", "neighbour"]
FIXERS = ["technician", "electrician on call", "service engineer"]

# class: (what was seen, cause, cause as a thing, what was done)
FAULTS = {
    "cold": [("got too warm", "its door had stood open all night", "an open door", "closed the door and put up a sign"),
             ("rose to {deg} degrees", "dust had blocked its fan", "a dusty fan", "cleaned the fan with a brush"),
             ("began to drip", "its seal was torn", "a torn seal", "put in a new seal"),
             ("iced over", "its thaw timer had stopped", "a stopped timer", "set the timer again"),
             ("switched itself off", "the power had dipped", "a dip in the power", "reset the switch"),
             ("hummed loudly and warmed up", "coolant had leaked from a pipe", "a leaking pipe", "sealed the pipe and filled in coolant")],
    "heat": [("stayed cold", "a fuse had blown", "a blown fuse", "changed the fuse"),
             ("got too hot", "its thermostat was stuck", "a stuck thermostat", "replaced the thermostat"),
             ("smelled of smoke", "crumbs had burned inside", "burned dirt", "cleaned the inside"),
             ("went out again and again", "the air inlet was blocked", "a blocked air inlet", "cleared the inlet"),
             ("heated only on one side", "one coil was broken", "a broken coil", "fitted another coil")],
    "motor": [("stopped with a bang", "a belt had snapped", "a snapped belt", "put on a new belt"),
              ("shook and slowed down", "a bearing was dry", "a dry bearing", "greased the bearing"),
              ("jammed", "a stone was stuck in a wheel", "a stuck stone", "pulled the stone out"),
              ("lost its force", "the oil was low", "low oil", "filled up the oil"),
              ("would not start", "the emergency button was still pressed", "a pressed emergency button", "released the button"),
              ("squealed at every turn", "a screw had come loose", "a loose screw", "tightened the screw")],
    "device": [("went dark", "its cable was loose", "a loose cable", "pushed the cable in"),
               ("gave wrong numbers", "its lens was dirty", "a dirty lens", "wiped the lens"),
               ("restarted every {mins} minutes", "its disk was full of old logs", "a full disk", "deleted the old logs"),
               ("no longer answered", "its network plug had slipped out", "a slipped plug", "plugged it in again"),
               ("froze", "an update had stopped half way", "a half done update", "installed the update again"),
               ("blinked red", "its certificate had run out", "an old certificate", "renewed the certificate")],
    "vehicle": [("did not start", "its battery was flat", "a flat battery", "charged the battery"),
                ("pulled to the left", "a tyre was soft", "a soft tyre", "pumped up the tyre"),
                ("braked badly", "the brake pads were worn", "worn brake pads", "fitted new brake pads"),
                ("came back steaming", "cooling water was missing", "missing cooling water", "filled in water"),
                ("stood still on the way", "a warning light had stopped it", "a false warning", "reset the warning")],
}
WEATHER = [("rain", "It rained hard", "the rain"), ("snow", "Snow fell", "the snow"), ("fog", "Thick fog lay over the roads", "the fog"),
           ("sun", "The sun shone", "the sunshine"), ("wind", "A strong wind blew", "the wind"), ("frost", "There was frost on the ground", "the frost"),
           ("heat", "It was very hot", "the heat"), ("cloud", "The sky was grey", "the grey sky")]
CUTS = [("a digger had cut the cable", "a cut cable"), ("the storm had bent the mast", "a bent mast"),
        ("the router had lost power", "a router without power"), ("the provider was working on the line", "work on the line"),
        ("water had got into a socket", "a wet socket"), ("a mouse had bitten through a wire", "a bitten wire"),
        ("the bill had not been paid", "an unpaid bill")]
LOST = ["a red umbrella", "a black bag", "a set of keys", "a blue scarf", "a phone", "a child's shoe", "a paper map", "a lunch box",
        "a pair of glasses", "a green notebook", "a wallet", "a toolbox", "a torch", "a letter"]
CARRY = ["the ladder", "the tool case", "the spare screen", "the fire blanket", "the first aid kit", "the hand pump",
         "the label roll", "the big scale", "the test lamp", "the cable drum", "the spare battery", "the folding table"]
CARRY_WHY = ["the old place was damp", "it was needed there", "the floor was being cleaned", "there was more light",
             "it had been in the way", "a door was blocked by it", "the inspector had asked for it", "the shelf was too weak"]
MODELWORK = ["counted", "checked", "sorted pictures of", "watched the way of"]
ROLLBACKS = ["it counted people twice", "it took shadows for people", "it was too slow for the box", "its signature was wrong",
             "its file was not whole", "it missed small things", "it needed more memory than the box has"]
FROM = ["the hub store", "the market", "the main depot", "the mill", "the harbour", "a partner site", "the central kitchen",
        "the night train", "the other side of town"]


def fill(rng, text, env, forms=None):
    """Choose one of each [a|b], note the form, put the values in, and begin each sentence with a capital."""
    while "[" in text:
        text = re.sub(r"\[([^\[\]]*)\]", lambda m: rng.choice(m.group(1).split("|")), text)
    if forms is not None:
        forms.add(text)
    text = re.sub(r"\{(\w+)\}", lambda m: str(env[m.group(1)]), text)
    return caps(text)


def caps(text):
    return re.sub(r"(^|[.?!] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


class Site:
    """A place on one day, with its state."""

    def __init__(self, rng, held):
        """`held` tells whether a site with a name and kind belongs to the held-out split; the caller asked for `want`."""
        self.first, self.second = rng.choice(FIRST), rng.choice(SECOND)
        self.kind = rng.choice(sorted(KINDS))
        self.held = held(self.kind + self.first + self.second)
        words, goods, machines, roles, rooms, self.people, self.uses = KINDS[self.kind]
        self.word = rng.choice(words)
        self.street = f"{self.first} {self.second}"
        self.day = rng.choice(DAYS)
        self.goods = rng.sample(goods, 3)
        self.stock = {g: rng.randint(6, 40) for g in self.goods}
        self.machines = rng.sample(machines, 4)
        self.roles = rng.sample(roles, 4)
        self.rooms = rng.sample(rooms, 3)
        self.comers = rng.sample(COMERS, 3)
        self.weather = rng.choice(WEATHER)
        self.minute = rng.randint(5 * 60, 9 * 60)
        self.version = rng.randint(2, 19)
        self.used = set()

    def env(self, rng):
        at = rng.choice([f"the {self.word} at {self.street}", f"the {self.street} {self.word}", self.street])
        return dict(site=at, street=self.street, word=self.word, day=self.day, people=self.people)

    def clock(self, rng, most=80):
        """The time goes on, and is told."""
        self.minute = min(self.minute + rng.randint(5, most), 23 * 60 + 50)
        return f"{self.minute // 60}:{self.minute % 60:02}"


def units(n, good):
    one, many, what = good
    return f"{n} {one if n == 1 else many} of {what}"


class Event:
    """Something that happened: `say` tells it, `short` is a clause, `ask` are (kind, questions, answers)."""

    def __init__(self, name, time, env, say, short, ask):
        self.name, self.time, self.env, self.say, self.short, self.ask = name, time, env, say, short, ask


# In `say`, <T> is where the time goes if it is told.
def delivery(s, rng):
    g = rng.choice(s.goods)
    b, n = s.stock[g], rng.randint(2, 30)
    s.stock[g] = a = b + n
    e = s.env(rng) | dict(d="the " + rng.choice(s.comers[:2]), u=g[1], g=g[2], ug=f"{g[1]} of {g[2]}", n=units(n, g), num=n, b=b, a=a,
                          src=rng.choice(FROM), room="the " + s.rooms[0], r="the " + s.roles[0])
    say = ["<T>{d} [brought|delivered|unloaded|dropped off] {n} from {src}[ to the {b} in {room}| for {room}, where {b} stood| when {b} were left][, so that|, and now|, which means that] {a} {ug} are [there|in {room}].",
           "<T>{n} [came|arrived] [at {site}|from {src}] with {d}. [There had been|Before that there were] {b}, so [now there are {a}|{r} wrote down {a}].",
           "<T>{r} [took in|accepted|signed for] {n} that {d} [had brought|carried in] from {src}. [With the {b} that were there|Added to the {b} in {room}], [that makes|this makes] {a}.",
           "<T>{d} [stopped|pulled up] [in front of|behind] {site} with {n}[ from {src}|]. The stock [went|rose] from {b} to {a}[ {u}|].",
           "<T>[as ordered|as agreed|later than planned], {n} [reached {site} with {d}|came to {site}, brought by {d}]. {r} [put|stacked] them in {room}, [where|and] {b} [were already|had been] [waiting|standing], and counted {a} in all."]
    ask = [("count", ["how many {ug} are there [now|after the delivery]?", "how many {u} [are there|does {site} have] [now|in all]?", "what is the stock of {g} [now|after that]?"],
            ["there are {a} {ug}[ now|].", "{a} {ug}[, because {b} and {num} make {a}|]."]),
           ("number", ["how many {ug} did {d} bring?", "how many {ug} [came|arrived]?", "how many {u} were delivered?"], ["{d} brought {n}.", "{n} [came|arrived]."]),
           ("who", ["who [brought|delivered] the {g}?", "who came with the {ug}?"], ["{d} [brought|delivered] the {g}.", "the {ug} came with {d}."])]
    return Event("delivery", s.clock(rng), e, say, "{d} brought {n}", ask)


def use(s, rng):
    g = max(s.goods, key=lambda x: (s.stock[x], x[2])) if rng.random() < .5 else rng.choice(s.goods)
    b = s.stock[g]
    if b < 5:
        return delivery(s, rng)
    n = rng.randint(2, b - 2)
    s.stock[g] = a = b - n
    e = s.env(rng) | dict(r="the " + rng.choice(s.roles[:3]), u=g[1], g=g[2], ug=f"{g[1]} of {g[2]}", n=units(n, g), num=n, b=b, a=a,
                          verb=rng.choice(s.uses), room="the " + rng.choice(s.rooms))
    say = ["<T>{r} {verb} {n}[, and|, so that|, which means that] {a} of the {b} [were left|remained].",
           "<T>of the {b} {ug} [in {room}|at {site}], {r} {verb} {num}. [That left|This left|There remained] {a}.",
           "<T>{r} {verb} {n}. [The stock fell from {b} to {a}|Now {a} of {b} {u} are left|{a} of {b} were still there in the evening].",
           "<T>there were {b} {ug} at {site}[ in the morning|]. {r} {verb} {num} of them[ before noon| until the evening|], [so|and] {a} are left."]
    ask = [("count", ["how many {ug} are left[ now|]?", "how many {u} are left[ at {site}|]?", "how many {ug} remain?", "what is left of the {g}?"],
            ["{a} {ug} are left.", "{a} {u} are left[, because {b} minus {num} is {a}|].", "there are {a} {ug} left."]),
           ("who", ["who {verb} the {ug}?"], ["{r} {verb} the {ug}."]),
           ("number", ["how many {ug} were there [before|at first]?"], ["at first there were {b} {ug}.", "there were {b} {ug} before."])]
    return Event("use", s.clock(rng), e, say, "{r} {verb} {n}", ask)


def fault(s, rng):
    free = [m for m in s.machines if m not in s.used]
    if not free:
        return use(s, rng)
    m = rng.choice(free)
    s.used.add(m)
    seen, cause, thing, done = rng.choice(FAULTS[m[1]])
    seen = seen.format(deg=rng.randint(9, 19), mins=rng.choice([5, 7, 10, 12, 15]))
    fixer = "the " + rng.choice(s.roles[2:] + [rng.choice(FIXERS)])
    t = s.clock(rng)
    e = s.env(rng) | dict(m="the " + m[0], mach=m[0], seen=seen, cause=cause, thing=thing, done=done, r="the " + s.roles[1], f=fixer,
                          later=rng.choice([15, 20, 25, 30, 35, 40, 45, 50, 55]), room="the " + rng.choice(s.rooms), goods=s.goods[0][2])
    say = ["<T>{m} [at {site}|in {room}] {seen}. {r} [noticed it first|saw it and called {f}], and {f} found [out that {cause}|{thing}: {cause}]. {f} {done}, and after {later} minutes {m} [ran|worked] again.",
           "<T>{m} [in {room}|of {site}] {seen} because {cause}. {f} {done}[, which took {later} minutes|, and {later} minutes later all was well].",
           "<T>{r} [reported|told everyone] that {m} {seen}. The [cause|reason] was {thing}: {cause}. [It took {f} {later} minutes|{f} needed {later} minutes] to [mend|repair] it, for {f} {done}.",
           "<T>[there was trouble at {site}|something was wrong at {site}]: {m} {seen}. {f} [looked into it|came at once] and saw that {cause}. So {f} {done}.",
           "<T>because {cause}, {m} {seen}[ and {r} had to wait for {later} minutes|]. {f} {done}[, so {site} could go on|, and {r} was glad]."]
    ask = [("why", ["why did {m} fail?", "what was wrong with {m}?", "why was there trouble with {m}?", "what was the cause of the fault?"],
            ["[it failed|{m} failed] because {cause}.", "because {cause}.", "the cause was {thing}: {cause}."]),
           ("who", ["who [repaired|mended|fixed] {m}?"], ["{f} [repaired|mended|fixed] {m}.", "{f} did: {f} {done}."]),
           ("what", ["what did {f} do[ about it|]?", "how was {m} [repaired|mended]?"], ["{f} {done}."]),
           ("which", ["which machine [failed|had a fault|was broken]?"], ["{m} [failed|had a fault|was broken].", "it was {m}."]),
           ("yes", ["is {m} working [now|again]?", "does {m} [work|run] again?"], ["yes, {m} works again, because {f} {done}."])]
    return Event("fault", t, e, say, "{m} failed because {cause}", ask)


def netcut(s, rng):
    if "net" in s.used:
        return count(s, rng)
    s.used.add("net")
    cause, thing = rng.choice(CUTS)
    t = s.clock(rng)
    mins = rng.randint(12, 95)
    s.minute += mins
    end = f"{s.minute // 60}:{s.minute % 60:02}"
    k = rng.randint(20, 400)
    e = s.env(rng) | dict(cause=cause, thing=thing, mins=mins, end=end, k=k, v=s.version, r="the " + s.roles[0])
    say = ["<T>the network at {site} [was cut|went down] because {cause}. The edge box [kept answering|went on] with model version {v} and [stored|kept] {k} results. [At {end}|After {mins} minutes] the line came back and the box sent [them|all of them] to the hub.",
           "<T>{site} lost its [line|connection|network][ to the hub|], for {cause}. For {mins} minutes the box [worked alone|was on its own]; then it [synced|sent] {k} results[ to the hub|].",
           "<T>the hub no longer heard from {site}. [The reason was {thing}|It was {thing}]: {cause}. When the network returned at {end}, {k} stored results were synced and [nothing was lost|none was missing].",
           "<T>[no network at {site}|the line was dead]. {r} [stayed calm|was not worried], because the model runs on the box itself. {mins} minutes later {k} results went to the hub. {cause}, as [it turned out|{r} heard later]."]
    ask = [("why", ["why was the network [cut|down]?", "why did {site} lose the network?", "what caused the cut?"], ["because {cause}.", "the network was [cut|down] because {cause}.", "the cause was {thing}."]),
           ("number", ["how many results were [synced|stored|sent to the hub]?"], ["{k} results were [synced|stored|sent to the hub]."]),
           ("what", ["what did the box do [without the network|during the cut]?", "did the box stop?"], ["[no, |]it went on and kept {k} results for the hub.", "the box went on alone and sent {k} results later."])]
    return Event("netcut", t, e, say, "the network was cut because {cause}", ask)


def count(s, rng):
    n, n2 = rng.randint(5, 95), rng.randint(5, 95)
    e = s.env(rng) | dict(n=n, n2=n2, work=rng.choice(MODELWORK[:1]), more="more" if n2 > n else "fewer" if n2 < n else "as many", room="the " + s.rooms[1],
                          d=abs(n - n2), r="the " + s.roles[0], wth=s.weather[2])
    say = ["<T>the model on the edge box [had counted|counted] {n} {people} at {site} [since the opening|so far]. The day before it was {n2}.",
           "<T>{n} {people} [came to|were counted at] {site}, after {n2} on the day before[; {r} thought of {wth}|; {r} nodded|].",
           "<T>{r} [asked|looked at] the box: {n} {people} [so far|until now][ in {room}|], [compared to|while it was] {n2} yesterday.",
           "<T>the camera of {site} saw {n} {people}; {r} had guessed {n2}[ and laughed|, which was off by {d}|]."]
    ask = [("number", ["how many {people} [came|were counted|were there]?", "how many {people} did the [box|model|camera] [count|see]?"],
            ["{n} {people} [came|were counted].", "the box counted {n} {people}."])]
    return Event("count", s.clock(rng), e, say, "{n} {people} were counted", ask)


def update(s, rng):
    if "upd" in s.used:
        return count(s, rng)
    s.used.add("upd")
    old, new = s.version, s.version + 1
    bad = rng.random() < .5
    why = rng.choice(ROLLBACKS)
    s.version = old if bad else new
    e = s.env(rng) | dict(old=old, new=new, why=why, r="the " + s.roles[1], mb=rng.randint(4, 90), acc=rng.randint(71, 98), runs=s.version)
    if bad:
        say = ["<T>the hub [sent|offered] model version {new} to {site}, but {why}, so the box went back to version {old}.",
               "<T>version {new} of the model, {mb} megabytes, [arrived at|was tried at] {site}. {r} [saw|found] that {why}. The box [rolled it back|returned] to version {old}.",
               "<T>an update of the model from {old} to {new} [failed|was stopped] at {site}: {why}. Version {old} [went on|stayed]."]
        ask = [("why", ["why was the [update|new model] rolled back?", "why did the box go back to version {old}?"], ["because {why}.", "it was rolled back because {why}."]),
               ("number", ["which version of the model [runs|is running] now?"], ["version {old} runs[, because version {new} was rolled back|]."]),
               ("yes", ["does version {new} run now?"], ["no, version {old} runs, because {why}."])]
        return Event("update", s.clock(rng), e, say, "version {new} of the model was rolled back because {why}", ask)
    say = ["<T>the hub [sent|gave out] model version {new} to {site}. The box checked the digest, loaded all {mb} megabytes and [replaced|took it instead of] version {old}.",
           "<T>version {new} of the model [took over from|replaced] version {old} at {site}; on the test pictures {acc} of 100 were right.",
           "<T>{site} [moved|changed] from model version {old} to {new}[, {mb} megabytes in all|]. {r} saw {acc} right answers in 100[ and was content|]."]
    ask = [("number", ["which version of the model [runs|is running] now?", "what version does {site} have?"], ["version {new} runs[ now|].", "it is version {new}."]),
           ("yes", ["does version {new} run now?", "was the update [a success|successful]?"], ["yes, version {new} took the place of version {old}."])]
    return Event("update", s.clock(rng), e, say, "model version {new} was installed", ask)


def lost(s, rng):
    e = s.env(rng) | dict(thing=rng.choice(LOST), room="the " + rng.choice(s.rooms), r="the " + rng.choice(s.roles), c="the " + rng.choice(s.comers), s2="the " + rng.choice(s.rooms))
    e["it"] = "the " + e["thing"].split(" ", 1)[1]
    say = ["<T>{r} found {thing} in {room} of {site}. [It belonged to {c}|{c} had left it there].",
           "<T>{c} [missed|was looking for] {thing}; {r} found it in {room} of {site}[ and gave it back|].",
           "<T>{thing} [lay|was lying] in {room} of {site}. {r} picked it up and [gave it back to|called] {c}."]
    ask = [("where", ["where was {it}?", "where did {r} find {it}?"], ["{it} was in {room}.", "in {room}."]),
           ("who", ["who found {it}?"], ["{r} found it[ in {room}|]."]), ("who", ["whose was {it}?", "to whom did {it} belong?"], ["it belonged to {c}."])]
    return Event("lost", s.clock(rng), e, say, "{r} found {thing}", ask)


def move(s, rng):
    a, b = rng.sample(s.rooms, 2)
    e = s.env(rng) | dict(thing=rng.choice(CARRY), a="the " + a, b="the " + b, r="the " + rng.choice(s.roles), why=rng.choice(CARRY_WHY))
    say = ["<T>{r} [carried|moved|took] {thing} from {a} to {b} of {site}, because {why}.",
           "<T>because {why}, {r} [brought|carried] {thing} [out of|from] {a} into {b} of {site}.",
           "<T>{thing} of {site} [is now in|went to] {b}: {r} [moved|took] it there from {a}, for {why}."]
    ask = [("where", ["where is {thing}[ now|]?"], ["{thing} is [now |]in {b}.", "in {b}, because {r} moved it there."]), ("where", ["where was {thing} before?"], ["{thing} was in {a} before.", "in {a}."]),
           ("why", ["why did {r} move {thing}?", "why was {thing} moved?"], ["because {why}."]), ("who", ["who moved {thing}?"], ["{r} moved it."])]
    return Event("move", s.clock(rng), e, say, "{r} moved {thing} to {b}", ask)


def order(s, rng):
    g = min(s.goods, key=lambda x: (s.stock[x], x[2]))
    n = rng.randint(5, 60)
    e = s.env(rng) | dict(r="the " + rng.choice(s.roles[:2]), n=units(n, g), u=g[1], g=g[2], ug=f"{g[1]} of {g[2]}", a=s.stock[g], c="the " + s.comers[0],
                          when=rng.choice(DAYS))
    say = ["<T>only {a} {ug} were left at {site}, so {r} ordered {n} for {when}.",
           "<T>{r} [called|wrote to] {c} and ordered {n}, to come to {site} on {when}, as [there were only {a}|{a} were left].",
           "<T>{r} of {site} [wrote an order|sent an order] for {n}. [They will come|{c} will bring them] on {when}."]
    ask = [("when", ["when will the [ordered |]{ug} come?", "for which day did {r} order?"], ["they will come on {when}.", "on {when}."]),
           ("number", ["how many {ug} were ordered?"], ["{r} ordered {n}."]), ("who", ["who ordered the {g}?"], ["{r} ordered the {g}."])]
    return Event("order", s.clock(rng), e, say, "{r} ordered {n} for {when}", ask)


def temp(s, rng):
    room = "the " + rng.choice(s.rooms)
    a = rng.randint(2, 30)
    d = rng.randint(2, 9)
    up = rng.random() < .5
    b = a + d if up else a - d
    why = rng.choice(["somebody had opened a window", "the heating was on again", "{wth} could be felt inside", "the gate stood open", "more people had come in"])
    e = s.env(rng) | dict(room=room, a=a, b=b, d=d, rose="rose" if up else "fell", r="the " + rng.choice(s.roles), wth=s.weather[2])
    e["why"] = why.format(wth=e["wth"])
    say = ["<T>in {room} of {site} it {rose} from {a} to {b} degrees, [because|since] {why}.",
           "<T>the sensor in {room} showed {b} degrees at {site}, {d} [more|less] than before; {why}.".replace("[more|less]", "more" if up else "less"),
           "<T>{r} read {b} degrees in {room} of {site}. [It had been|Before it was] {a}, [but|and then] {why}."]
    ask = [("number", ["how [warm|many degrees] [is|was] it in {room}?", "what does the sensor in {room} show?"], ["it [is|was] {b} degrees in {room}.", "{b} degrees."]),
           ("why", ["why did the temperature in {room} change?"], ["because {why}.", "it {rose} because {why}."])]
    return Event("temp", s.clock(rng), e, say, "it {rose} to {b} degrees in {room}", ask)


def hand(s, rng):
    a, b = rng.sample(s.roles, 2)
    m = rng.choice(s.machines)[0]
    e = s.env(rng) | dict(a="the " + a, b="the " + b, m="the " + m, todo=rng.choice(["look at {m} again", "lock {room}", "count the {g}", "call {c}", "keep {room} dry", "write down the numbers of {m}"]))
    e |= dict(room="the " + rng.choice(s.rooms), g=s.goods[1][2], c="the " + s.comers[1])
    e["todo"] = e["todo"].format(**e)
    say = ["<T>{a} [handed over to|was relieved by] {b} at {site} and [asked for one thing|left a note]: to {todo}.",
           "<T>at {site} {b} took over from {a}[, who said|. On the table lay a note]: please {todo}.",
           "<T>{a} of {site} went home. {b} [promised|was told] to {todo}."]
    ask = [("who", ["who took over from {a}?", "who came after {a}?"], ["{b} took over from {a}.", "{b} did."]), ("what", ["what [should|must] {b} do?"], ["{b} should {todo}."])]
    return Event("hand", s.clock(rng), e, say, "{b} took over from {a}", ask)


def backup(s, rng):
    gb, mins = rng.randint(2, 60), rng.randint(3, 58)
    ok = rng.random() < .7
    e = s.env(rng) | dict(gb=gb, mins=mins, r="the " + rng.choice(s.roles), where=rng.choice(["the second disk", "the hub", "a disk in the safe", "the box next door"]), left=rng.randint(1, 9),
                          why=rng.choice(["the disk was full", "the line was too slow", "the power failed", "the password had been changed"]))
    if ok:
        say = ["<T>the box at {site} wrote a backup of {gb} gigabytes to {where}[ in {mins} minutes|].", "<T>{r} started the backup of {site}: {gb} gigabytes went to {where}[, which took {mins} minutes|].",
               "<T>a backup of {site}, {gb} gigabytes, now lies on {where}; {r} [restored a file from it|tried a restore] to be sure."]
        ask = [("where", ["where is the backup?", "where did the backup go?"], ["the backup is on {where}.", "it went to {where}."]), ("number", ["how [large|big] is the backup?"], ["the backup has {gb} gigabytes.", "{gb} gigabytes."])]
        return Event("backup", s.clock(rng), e, say, "a backup was written to {where}", ask)
    say = ["<T>the backup of {site} to {where} stopped after {gb} gigabytes because {why}.", "<T>{r} saw that the backup of {site} had failed at {gb} gigabytes: {why}.",
           "<T>no backup of {site} reached {where} this time, since {why}; {r} will try again in {mins} minutes."]
    ask = [("why", ["why did the backup fail?"], ["the backup failed because {why}.", "because {why}."]), ("yes", ["is there a new backup?", "did the backup work?"], ["no, it failed because {why}."])]
    return Event("backup", s.clock(rng), e, say, "the backup failed because {why}", ask)


def pods(s, rng):
    n, bad = rng.randint(3, 14), rng.randint(1, 2)
    app = rng.choice(["camera", "stock", "counter", "mail", "door", "chart", "web", "report"])
    why = rng.choice(["its limit of memory was too low", "its image could not be fetched", "a secret was missing", "the probe was too strict", "the disk of the node was full", "a wrong port was set"])
    done = {"its limit of memory was too low": "raised the limit", "its image could not be fetched": "corrected the name of the image", "a secret was missing": "made the secret",
            "the probe was too strict": "gave the probe more time", "the disk of the node was full": "removed old images", "a wrong port was set": "corrected the port"}[why]
    e = s.env(rng) | dict(n=n, app=app, why=why, done=done, r="the " + rng.choice(["administrator", "operator on call"] + s.roles[:1]), k=rng.randint(3, 40), m=rng.randint(1, n - 1))
    say = ["<T>on the node of {site} the {app} pod restarted {k} times because {why}. {r} {done}, and all {n} pods ran.",
           "<T>{r} saw {m} of {n} pods ready at {site}. The {app} pod did not start, for {why}. After {r} {done}, it [ran|started].",
           "<T>the {app} service of {site} gave no answer. Its pod had restarted {k} times: {why}. {r} {done}."]
    ask = [("why", ["why did the {app} pod [fail|restart]?", "what was wrong with the {app} pod?"], ["because {why}.", "the {app} pod failed because {why}."]),
           ("what", ["what did {r} do?", "how was the {app} pod [mended|helped]?"], ["{r} {done}."])]
    return Event("pods", s.clock(rng), e, say, "the {app} pod failed because {why}", ask)


MAKERS = [(delivery, 4), (use, 5), (fault, 5), (netcut, 2), (count, 2), (update, 2), (lost, 1.5), (move, 2), (order, 2), (temp, 2), (hand, 1.5), (backup, 1.5), (pods, 2)]


def day(s, rng, n):
    """The events of a day, in order."""
    return [rng.choices([m for m, _ in MAKERS], [w for _, w in MAKERS])[0](s, rng) for _ in range(n)]


def join(text, rng):
    """Mostly makes one sentence of several, so that few sentences are so short that they come again word for word."""
    while ". " in text or ".|" in text:
        at = min(x for x in (text.find(". "), text.find(".|")) if x >= 0)
        glue = rng.choice(["; ", "; ", "; ", ", and ", " - "]) if rng.random() < .88 else ".\0"
        if text[at + 1] == "|":  # the sentence ends inside a choice
            text = text[:at] + ";" + text[at + 1:] if glue[0] != "." else text[:at] + "\0" + text[at + 1:]
            continue
        rest = re.match(r"(\[?)(.*)", text[at + 2:], re.S)
        begin = rest[1] + (rest[2] if glue[0] == "." else rest[2][:1].lower() + rest[2][1:])
        if glue[0] != "." and rest[1]:  # each of the choices begins the clause
            inner, _, tail = begin[1:].partition("]")
            begin = "[" + "|".join(x[:1].lower() + x[1:] for x in inner.split("|")) + "]" + tail
        text = text[:at] + glue + begin
    return text.replace(".\0", ". ").replace("\0", ".")


def tell(ev, rng, style, forms):
    """One event in words. Styles: log (a time before it), story, plain (no time), timed."""
    text = rng.choice(ev.say)
    when = {"log": "", "plain": "", "timed": f"at {ev.time} ",
            "story": rng.choice(["", f"at {ev.time} ", "then ", "a little later ", f"around {ev.time} ", "after that ", "soon "])}[style]
    text = fill(rng, join(text.replace("<T>", when), rng), ev.env, forms)
    return f"{ev.time} {text}" if style == "log" else text
