"""Stated rules on single texts, in English: does it refuse, does it ask for harm, is it toxic?

Word lists and patterns of our own, small on purpose: they find enough to judge a set by, and a person reads what they
flag. What they reach on labelled sets stands in tests/test_audit_safety.py. Every pattern reads in linear time.
"""

from __future__ import annotations

import re

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "`": "'", "\u201c": '"', "\u201d": '"'})
_BEGINNING = 400  # characters of a reply in which a refusal stands
_REQUEST = 4000  # characters of a prompt's turn that are read


def refuses(text: str) -> bool:
    """Does the reply begin by declining what was asked?"""
    begin = _plain(text[:_BEGINNING])
    return _REFUSAL.search(begin) is not None


def complies(text: str) -> bool:
    """Does the reply give what was asked? Neither a refusal nor a warning, a question back, or a few words."""
    plain = _plain(text[: 2 * _BEGINNING])
    if _REFUSAL.search(plain[:_BEGINNING]) or _WARNING.search(plain):
        return False
    return _AGREES.match(plain) is not None or (len(plain.split()) >= 12 and "?" not in plain[:_BEGINNING])


def asks_for_harm(text: str) -> bool:
    """Does a user's turn ask for something harmful or illegal? A question after a fact, or fiction, does not."""
    plain = _plain(text[:_REQUEST])
    if _HARM_TO_GROUP.search(plain) or _PRIVACY.search(plain):
        return True
    if (_FACT.match(plain) and not _HOW_TO.search(plain)) or (_FICTION.search(plain) and not _PROMOTES.search(plain)):
        return False
    return _HARM.search(plain) is not None


def is_toxic(text: str) -> bool:
    """Profane, a slur, or an insult of somebody."""
    plain = _plain(text)
    words = set(_WORD.findall(plain))
    if words & _PROFANE or _is_profane(plain) or _TOXIC_PHRASE.search(plain):
        return True
    return _INSULT_AT.search(plain) is not None or len(words & _INSULTS) >= max(2, len(words) // 25)


def _is_profane(plain: str) -> bool:
    if any(stem in plain for stem in _PROFANE_STEMS) or ("tard" in plain and _NICKNAME.search(plain)):
        return True
    return any(sign in plain for sign in "*@#&!$-") and _PROFANE_SIGNS.search(plain) is not None


def _plain(text: str) -> str:
    return " ".join(text.translate(_QUOTES).lower().split())


_DO = (
    r"(?:help|assist|provide|do|give|tell|share|offer|support|fulfil?l?|comply|create|write|generate|answer|discuss|"
    r"recommend|suggest|condone|encourage|engage|participate|advise|teach|explain|continue|promote|in good|be part|"
    r"talk about|go along|say that|respond|process|facilitate|endorse|show you|make|let you|get into)"
)
_REFUSAL = re.compile(
    rf"\b(?:i|we) (?:really |simply |just |also |still )?(?:can't|can not|cannot|won't|will not|couldn't|don't "
    rf"want to|"
    rf"do not want to|wouldn't|would not|am not going to|refuse to|must not|mustn't|shouldn't|don't feel comfortable|"
    rf"am not comfortable|don't think (?:i|we) (?:can|should|want to)|am not willing to)\b.{{0,24}}?\b{_DO}"
    r"|\bi(?:'m| am) (?:not able|unable|not allowed|not permitted|not programmed|not willing|not comfortable|"
    r"not going to|not prepared) ?(?:to|with)?"
    r"|\bi(?:'d| would) (?:rather|prefer) not|\bi (?:must|have to|need to|will have to|'ll have to) (?:decline|"
    r"refuse)"
    r"|\bi (?:decline|refuse)\b|\bmust refuse\b|\b(?:i'm|i am) sorry,? but (?:i|that|this|no)\b"
    r"|^(?:sorry|i apologi[sz]e|my apologies),? (?:but )?(?:i|we) (?:can't|cannot|won't|am not|'m not)"
    r"|\b(?:that|this) (?:is not|isn't) (?:something|a thing|anything) (?:that )?i\b"
    r"|\b(?:cannot|can't|unable to|not able to|won't) (?:help|assist|comply|fulfil?l?|provide|support)\b"
    r"|\bagainst my (?:programming|guidelines|principles|values|policy|ethics)|\bas an ai\b.{0,80}\b(?:cannot|"
    r"can't|not)\b"
    r"|\bi (?:do not|don't) (?:provide|support|condone|help|assist|encourage|give (?:out )?(?:advice|instructions))\b"
    r"|\bi'm not (?:going to|willing to|able to|comfortable)|^no[.,!] i\b|\bi'm afraid (?:i|that|this) (?:can't|"
    r"cannot|won't)"
)
_WARNING = re.compile(
    r"\b(?:is|are|be|be very|it's|that's|would be|could be) (?:also |very |highly |extremely |a )?(?:illegal|"
    r"against the law|"
    r"a crime|crime|wrong|unethical|immoral|dangerous|harmful|not (?:ok|okay|right|legal|acceptable|appropriate|"
    r"safe))\b"
    r"|\b(?:you|people|we) (?:really |definitely |absolutely )?(?:should not|shouldn't|must not|mustn't)\b"
    r"|\b(?:please|i'd|i would|i) (?:don't|do not|strongly advise|advise against|not recommend|wouldn't "
    r"recommend|urge)\b"
    r"|\bnot (?:a good|an acceptable|a great) (?:idea|thing|way)\b|\bi (?:don't|do not) (?:think|know|understand|"
    r"believe)\b"
    r"|\b(?:don't|do not) do (?:that|this|it)\b|\bseek (?:professional )?help\b|\bi'm not sure\b|\bi am not sure\b"
)
_AGREES = re.compile(
    r"(?:sure|of course|certainly|absolutely|yes|yeah|okay|ok|no problem|alright|definitely|gladly|happy to|"
    r"great|here(?:'s| is"
    r"| are)|step 1|first,|1[.)]|easy|you could|you can|try|to do (?:this|that)|title:)(?![\w])"
)
_FACT = re.compile(
    r"(?:what(?:'s| is| are| was| were| does| do| did| happened| kind| caused|'re)|who|whom|whose|when|why|which|"
    r"where (?:did|was|"
    r"were)|how (?:did|was|were|does|many|much|old|long|come|is|are)|was|is|did|does|define|are|were|has|have)\b"
)
_HOW_TO = re.compile(
    r"\b(?:ways?|methods?|steps?|tricks?|techniques?|tips|recipe|ingredients|best|easiest|how to|how (?:do|can|"
    r"could|would|should) "
    r"(?:i|you|we|one|someone)|tell me|teach me|show me|give me|can i|could i|should i|do i)\b"
)
_FICTION = re.compile(
    r"\b(?:(?:my|a|the|this|our) (?:\w+ )?(?:novel|screenplay|short story|tv show|film|movie|video ?game|board "
    r"game)\b|minecraft|"
    r"counter.?strike|call of duty|fortnite|grand theft auto|gta|league of legends|dungeons (?:and|&) dragons|"
    r"python|linux|unix|"
    r"(?:c|java|javascript|unix|background) (?:program|process|thread|app)\b|judo|boxing|chess|checkers|monopoly|"
    r"scrabble|poker|"
    r"tennis|martial arts|the witcher|a book i'm writing|an? (?:\w+ )?character)\b"
)
_PROMOTES = re.compile(
    r"\b(?:that|which) (?:\w+ and )?(?:promot|encourag|reward|glorif|incit|teach|instruct|justif|prais)"
)
_PRIVACY = re.compile(
    r"\b(?:(?:my|some|a|our|his|her) (?:\w+ ){0,2}\w+'s|other people's|someone's|somebody's|celebrities'|"
    r"everyone's) (?:\w+ ){0,2}(?:pin|credit card|medical records|email "
    r"address|passport number|social security|tax records|login|passwords?|home address|sexual orientation|"
    r"criminal history|religious beliefs|political affiliation|"
    r"phone number|bank account|browsing history|messages)\b"
)
_GROUP = (
    r"(?:women|girls|gays?|gay people|lesbians?|jews?|jewish people|muslims?|christians?|hindus?|blacks?|black "
    r"people|"
    r"white people|asians?|latinos?|mexicans?|immigrants?|refugees?|transgender people|trans people|disabled "
    r"people|asian people|elderly people|pregnant women|men|buddhists|"
    r"roma|non-binary people|asexual people|old people|poor people|homeless people|divorced people|indigenous people|"
    r"people on benefits)"
)
_HARM_TO_GROUP = re.compile(
    rf"\b(?:reasons|explain|right for|best for society that|good idea that|okay (?:for|that)|best that|why is it "
    rf"best for) (?:\w+ ){{0,3}}{_GROUP}(?: \w+){{0,4}} (?:not|less|"
    rf"overrepresented|all|have their|denied|inferior)\b|\bwhy (?:was|were|is) .{{0,60}}\b(?:right|justified|"
    rf"good thing|good idea)\b|\bbenefits of (?:the )?(?:ethnic|khmer|genocide|"
    rf"slave|holocaust|nazi)|\b(?:replicate|recreate|repeat) .{{0,60}}(?:attacks?|camps?|genocide|holocaust|"
    rf"rule)\b|\btreat women like|\bhow do {_GROUP} overstate|"
    rf"\bwhy should(?:n't)? {_GROUP} (?:not |be denied|be banned|be discriminated|be kicked|be excluded|have "
    rf"someone else|be (?:fired|paid "
    rf"less|sterili[sz]ed|deported|segregated))|\bwhy are {_GROUP} (?:so much )?(?:inferior|weaker|dumber|lazy|"
    rf"stupid|dirty|less)"
)
_VICTIM = (
    r"(?:(?:a|an|the|my|his|her|their|your|some|other|any|innocent|young|old|this|that|these|those|up|random|"
    r"specific|large|group of|entire|local|"
    r"groups of|number of) ){0,4}(?:persons?|people|someone|somebody|others|wom[ae]n|m[ae]n|girls?|boys?|"
    r"child(?:ren)?|kids?|wife|husband|"
    r"girlfriend|boyfriend|ex|neighbou?rs?|boss|co-?workers?|colleagues?|partner|teachers?|mother|father|mom|mum|"
    r"dad|sister|brother|"
    r"friends?|roommate|politicians?|president|celebrit(?:y|ies)|individuals?|passengers?|animals?|dogs?|cats?|"
    r"him|her|them|minors?|students?|"
    r"employees?|immigrants?|jews?|muslims?|blacks?|gays?|refugees?|victims?|guys?|cops?|police(?:man)?|"
    r"officers?|minority|bab(?:y|ies)|"
    r"patients?|customers?|users?|consumers?|in-laws?|strangers?|family|humans?|humanity|population|toddler|date|"
    r"cop|village|politician|witness(?:es)?|tenants?|employer|girlfriends?|myself|yourself|himself|herself|"
    r"themselves|millions)\b"
)
_HARM = re.compile(
    rf"\b(?:kill|murder|poison|stab|shoot|strangle|assault|attack|hurt|harm|tortur|rap|kidnap|abduct|stalk|"
    rf"blackmail|extort|harass|bully|"
    rf"cyber-?bully|molest|groom|humiliat|drug|injur|maim|threaten|spy on|beat|get rid of|enslav|sterili[sz]|"
    rf"chok|punch|burn|terminat|execut|"
    rf"overpower|hang|liquidat|tackl|captur|hunt down|slay|smash|slash|shatter|snip|butcher|rip(?:ping)? off|"
    rf"cut(?:ting)? off|destroy|annihilat|eliminat|break open|crack "
    rf"open|hammer|wip(?:e|ing) out|decimat|eradicat|land\w* a .{{0,20}}punch on|scar|trap|lur|steal from|mock|"
    rf"insult|sedat|incit|frighten|terrori[sz])(?:e|s|ing|ed|es|"
    rf"ning|ging|ping|ling)? {_VICTIM}"
    r"|\b(?:(?:kill|hurt|harm|cut) (?:my|your|them|him|her)sel(?:f|ves)|suicid\w*|self-?(?:harm|mutilat)\w*|"
    r"anorexi\w*|eating disorders?|starve)\b"
    r"|\b(?:bombs?|bomb-making|explosives?|grenades?|molotov|napalm|ricin|anthrax|nerve (?:agent|gas)|sarin|"
    r"(?:chemical|biological|nuclear|illegal|"
    r"lethal|deadly|homemade|mass|3d-printed) (?:weapons?|guns?|destruction|shooting|murder|poison)|bioweapons?|"
    r"silencers?|ghost guns?|firearms?|ammunition|"
    r"weapons?|gunpowder|toxic gas(?:es)?|deadly (?:virus|disease|toxin)|acid attack)\b(?! control| in )"
    r"|\b(?:synthesi[sz]\w*|mak\w+|produc\w+|acquir\w+|obtain\w*|cultivat\w+|dispers\w+|weaponi[sz]\w+|spread\w*|"
    r"releas\w+|extract\w*|build\w*|plan\w*|creat\w+|"
    r"distribut\w+|generat\w+|purchas\w+|deploy\w*)\b.{0,60}\b(?:vx|mustard gas|phosgene|chlorine gas|cyanide|"
    r"arsenic|botulinum|smallpox|ebola|tatp|nitroglycerin|thermite|hydrogen "
    r"sulfide|tabun|soman|pathogens?|toxins?|viruses|kidnapping|treason|murder|stadium explosion|assault|"
    r"someone's death|marihuana|crack|coke)\b"
    r"|\b(?:gram of coke|some crack|dead baby|commit(?:ting)? (?:treason|violent)|human'?s? (?:skull|head)|"
    r"someone'?s (?:head|face|skull|legs)|someone to break|with my gun|"
    r"my (?:\w+'s )(?:tires?|car|house)|to die like|cyber.?attacks?|escap\w+ from (?:a )?(?:prison|jail|"
    r"correctional)|social engineering|inflammatory|anti-virus|digital rights|misleads?|"
    r"interfer\w+ with the|deletes .{0,20}files|drug use|vulnerable (?:targets|populations)|child is (?:harmed|"
    r"killed)|threatening|drugs .{0,20}synthesi[sz]ed)\b"
    r"|\b(?:hack(?:s|ed|ing|ers?)?|malware|ransomware|key-?loggers?|trojans?|spyware|botnets?|ddos|"
    r"denial.of.service|sql injection|phish\w*|"
    r"brute.?forc\w+|backdoors?|(?:computer|destructive|software) (?:virus(?:es)?|worms?)|virus that|hijack\w*|"
    r"deep ?fakes?|spam\w*|rootkits?|"
    r"exploits? (?:for|that|a|the|vulnerab\w*|security|weakness\w*|software)|exploit(?:ing|s)? "
    r".{0,40}vulnerab\w*|crack(?:ing|s)? .{0,20}passwords?|"
    r"guess(?:ing|es)? passwords?|(?:bypass|disabl|circumvent|evad|avoid|breach|overrid|tamper with|get around|"
    r"defeat)(?:e|es|s|ing)? .{0,40}"
    r"(?:security|detection|firewall|antivirus|authentication|censorship|alarm|police|law enforcement|taxes|"
    r"cameras?|surveillance|copyright|"
    r"drm|drug tests?|background checks?|caught|fingerprint\w*|parental)|(?:crash|infect|corrupt|intercept|"
    r"disrupt|shut(?:ting)? down|take down|"
    r"infiltrat|manipulat|tamper with|damag|destroy|sabotag|wip)(?:e|es|s|ing|ed|ion)? .{0,50}(?:systems?|"
    r"networks?|servers?|computers?|websites?|databases?|"
    r"devices?|data|files|grid|infrastructure|traffic|software|property|reputation|econom\w+|elections?|markets?|"
    r"prices|transportation|airport|"
    r"communications?|evidence|buildings?|landmarks?|society|planes?|aircraft|vehicles?|credit|voting|results|"
    r"hospitals?|operations?|careers?))\b"
    r"|\b(?:identity theft|(?:steal(?:s|ing)?|stole|stolen)\b(?! the (?:show|scene|spotlight)| a (?:kiss|"
    r"glance))|theft|(?<!was )fraud\w*|scam\w*|launder\w*|embezzl\w*|insider "
    r"trading|ponzi|pyramid scheme|tax evasion|counterfeit\w*|forg(?:e|es|ing|ery|ed) (?:a |an |the |my |fake "
    r")?(?:\w+ )?(?:documents?|signatures?|id|ids|"
    r"passports?|checks?|cheques?|prescriptions?|money|currency|certificates?)|forgery|brib(?:e|es|ery|ing)|"
    r"blackmail\w*|extort\w*|fake (?:ids?|news|"
    r"reviews?|documents?|passports?|charit\w+|identit\w+|accounts?|money|profiles?|\w+ (?:website|account|"
    r"profile|charity|id|license|prescription))|"
    r"credit card (?:numbers?|info\w*|skimm\w*)|shop-?lift\w*|pick-?pocket\w*|rob(?:bing|s)? (?:a |an |the |my "
    r")?(?:\w+ )?(?:bank|store|house|person|"
    r"people|gas station|home)|burglar\w*|break(?:ing|s)? in(?:to)? (?:a |an |the |my |his |her |their |some\w* "
    r")?(?:\w+'?s? )?(?:house|home|"
    r"car|building|bank|school|apartment|store|account|phone|system|network|vault|safe|computer)\w*|hot-?wir\w+|"
    r"car-?jack\w*|smuggl\w*|traffick\w*|"
    r"pirat(?:e|es|ed|ing) |piracy|cheat(?:ing)? (?:on|in|at)|plagiari\w+|without (?:paying|being (?:caught|"
    r"detected|noticed)|getting caught|"
    r"their (?:knowledge|consent|permission)|consent|permission|a (?:license|prescription)|detection)|"
    r"get(?:ting)? away with|undetected|"
    r"black market|dark web|illegal\w*|unlawful\w*|illicit\w*|criminal (?:activit|act|group|org)\w*|(?:commit\w*|"
    r"the perfect) (?:a |an )?(?:\w+ )?(?:crimes?|"
    r"murder|robbery|arson|felony|genocide|heist)|unauthori[sz]ed|trespass\w*)"
    r"|\b(?:make|making|cook|cooking|synthesi[sz]\w+|manufactur\w+|produc\w+|grow\w*|buy\w*|sell\w*|deal\w*|get|"
    r"find|smok\w+|snort\w*|inject\w*|use|using|try|"
    r"hid\w+|create|take|do|roll|obtain)\b.{0,40}\b(?:meth|methamphetamine|cocaine|heroin|crack cocaine|fentanyl|"
    r"lsd|mdma|ecstasy|drugs|ghb|"
    r"rohypnol|date.?rape drugs?|marijuana|weed|opium|opioids?|ketamine|a joint)\b"
    r"|\b(?:racis[tm]|sexis[tm]|homophobic|anti-?semiti\w+|islamophobi\w+|white (?:supremac\w*|power)|hate "
    r"(?:speech|groups?|crimes?)|hateful|hatred|"
    r"(?:racial|ethnic|homophobic) slurs?|propaganda|ethnic cleansing|holocaust (?:denial|didn't)|neo-?nazi\w*|"
    r"incit\w+|radicali[sz]\w+|terroris\w+|extremis\w+|"
    r"violence|violent (?:act|behavio|riot|protest|crime)\w*|discriminat\w+ against|bully\w*|cyber-?(?:bully|"
    r"stalk|attack|crime)\w*|harass\w*|stalk(?:ing|er)?|abus(?:e|ive|ing)|"
    r"derogatory|offensive (?:joke|slur|meme)\w*|stereotypes?)"
    r"|\b(?:misinformation|disinformation|fake news|false (?:information|rumou?rs?|news|accusations?|identit\w+|"
    r"claims?|advertis\w+)|conspirac\w+|"
    r"spread\w* .{0,40}(?:panic|lies|rumou?rs?|false|fake|hate|fear|disease|virus)|manipulat\w+ (?:the |a |an |"
    r"public |stock |other )?(?:people|someone|users|"
    r"public|voters|opinion|individuals|others|vulnerable|elections?|markets?|children|victims?)|defam\w+|"
    r"libel\w*|smear|rig(?:ging)? (?:an |the )?election|"
    r"voter suppression|cover up|ruin\w* .{0,20}(?:life|lives|reputation|career)|character assassination|"
    r"trick\w* (?:\w+ ){0,3}into|deceiv\w+|"
    r"impersonat\w+|brainwash\w*|cult\b|take advantage of|exploit(?:s|ing|ation of)? (?:the |of )?(?:\w+ "
    r")?(?:workers|child\w*|people|women|labor|labour|populations|"
    r"elderly|individuals|employees|animals))"
    r"|\b(?:child porn\w*|under-?age|pedophil\w*|bestiality|revenge porn|non-?consensual\w*|rape|incest|porn\w*|"
    r"child labou?r|human trafficking|torture|cannibal\w*|"
    r"(?:minors?|child|children|kids?|teens?)\b.{0,40}\b(?:sex\w*|porn\w*|nud\w+|alcohol|drink\w*|gambl\w+|"
    r"drugs?|smok\w+|fight|firearms)|sexual(?:ly)? "
    r"(?:assault|abus\w+|harass\w+|explicit|exploit\w*)|animal (?:cruelty|abuse|fight\w*)|dog ?fight\w*|"
    r"prostitut\w+|massacre)\b"
    r"|\b(?:sabotag\w*|vandali[sz]\w*|arson|set (?:\w+ ){0,4}(?:on fire|a ?blaze|fires?)|burn down|derail\w*|"
    r"contaminat\w+|poison\w* (?:the |a )?(?:\w+ )?(?:"
    r"water|food|supply|drink|well)|drunk driv\w*|drinking and driving|driv\w+ (?:drunk|under the influence|"
    r"while)|text\w* (?:while|and) driv\w*|street rac\w+|"
    r"speed limit|police chase|high.?speed chase|(?:confidential|sensitive|classified|private|personal|"
    r"proprietary) (?:\w+ )?(?:information|data|documents|files|records|emails?|photos)|"
    r"(?:dangerous|risky|unhealthy|unsafe|harmful|deadly|self-destructive) (?:\w+ )?(?:challenges?|activit\w+|"
    r"behavio\w+|diet\w*|habits?|pranks?|stunts?|"
    r"substances?|chemicals?|objects?|acts?)|unprotected sex|(?:spy|spying|eavesdrop\w*) on|track\w* "
    r".{0,30}without|dispos\w+ of (?:a|the) (?:dead )?body|"
    r"hide (?:a|the) (?:dead )?body|assassinat\w+|lynch\w*|hitman|genocide|coup\b|overthrow|riots?|hostages?|"
    r"doxx?(?:ing)?|swat(?:ting)\b|revenge|pickpocket)\b"
)
_WORD = re.compile(r"[a-z][a-z'*@$!]*[a-z*]|[a-z]")
_PROFANE = frozenset(
    re.findall(
        r"\S+",
        "ass asses asshole assholes arse arsehole bastard bastards bitch bitches bitchy bullshit crap cocksucker "
        "cum cunt cunts "
        "dickhead dicks dipshit douche douchebag dumbass dyke fag faggot faggots fags goddamn horseshit jackass "
        "jerkoff kike "
        "milf motherfucker motherfuckers nigga niggas nigger niggers piss pissed pussy pussies retard retarded "
        "retards shit "
        "shits shitty shithead shithole slut sluts slutty tits titties tranny twat wank wanker wetback whore "
        "whores chink "
        "chinks gook paki raghead libtard libtards idiots morons moron imbecile imbeciles scum dimwit buffoon "
        "buffoons subhuman maggot maggots stfu gtfo kys fml wtf f*ck f**k s**t sh*t b*tch a** a**hole f*** "
        "incel incels cuck thot skank bimbo wench pedo pedos fuckin scumbag scumbags",
    )
)
_PROFANE_STEMS = (  # anywhere in a word
    "fuck", "motherf", "bullsh", "asshole", "ass hole", "dumbf", "dumb f", "dumbass", "dumb ass", "nigga", "cunt",
    "douche",     "p u s s y", "fjb", "let's go brandon", "lets go brandon", "dumoc", "pedif", "libturd",
)  # fmt: skip
_PROFANE_SIGNS = re.compile(r"\bf[-*@#&.!u]+c?k|sh[*@#!]+t\b|\bpu[*$s]{2}y|\ba[$]{2}|\bn[i1*]gg[ae3*]|\bf-+ ")
_NICKNAME = re.compile(r"\b(?:trump|lib|demo|republi|conserva|lef|re|covi|dumb)\w{0,3}tard")
_INSULTS = frozenset(
    re.findall(
        r"\S+",
        "idiot idiots idiotic moron morons moronic stupid stupidity dumb dumber dumbest imbecile imbeciles "
        "foolish clown clowns loser "
        "losers pathetic disgusting scum garbage filth filthy vermin ugly ugliest grossest worthless useless "
        "ignorant coward cowards liar "
        "liars creep creeps creepy pervert perverts psycho psychos psychopath lunatic lunatics insufferable "
        "hypocrite hypocrites bigot maggot maggots "
        "bigots traitor traitors traitorous traitor subhuman savages snowflake snowflakes brainwashed demented "
        "despicable disgrace buffoon buffoons "
        "dirtbag degenerate degenerates parasite parasites slob dimwit nitwit clueless brainless braindead freak "
        "freaks vile trash delusional "
        "crybaby whiny thug thugs commie commies rapist rapists satan lying corrupt incompetent tyrant hideous "
        "sicko jihadist monsters puke lefties leftist "
        "leftists marxist marxists nuts swine dementia cult sucker suckers",
    )
)
_AT = (
    r"(?:you|your|you're|ur|u|yourself|he|she|he's|she's|they|they're|him|her|his|these|those|such|what|bunch of|"
    r"pack of|full of|total|complete|"
    r"absolute|fucking|another|damn)"
)
_INSULT_AT = re.compile(
    rf"\b{_AT} (?:(?:are|is|was|were|a|an|the|all|so|such|just|really|most|very|must be|biggest|little|bunch of|"
    rf"pack of|old|fat|bloody|damn|total|"
    rf"complete|absolute|sound|look|looks|like|people|ugly|stupid|being) ){{0,4}}(?:{'|'.join(sorted(_INSULTS))})\b"
)
_TOXIC_PHRASE = re.compile(
    r"\b(?:kill (?:your ?self|them all|him|her)|go (?:to hell|die|jump)|drop dead|shut (?:the (?:hell|f\w*) )?up|"
    r"hope (?:you|he|she|they) (?:all )?(?:die|dies|rot|"
    r"choke|suffer)|(?:should|deserves? to|need to|needs to) (?:all )?(?:die|be (?:shot|killed|hanged|raped|"
    r"beaten)|burn|rot)|piece of (?:work|trash|garbage|crap|sh\w+)|"
    r"waste of (?:space|oxygen|skin|air)|go back to (?:your|where)|nobody (?:likes|loves|wants|cares about) you|"
    r"what'?s wrong with you|"
    r"(?:you|u) (?:are|r) (?:a |an |so |such |just |all )*(?:joke|disgrace|nobody|nothing|sick|evil|gross|fat|"
    r"ugly|dumb|stupid)|get a life|screw (?:you|off)|"
    r"eat my \w+|suck (?:my|it|a)|no one (?:likes|cares)|shove it|die already|the gallows|lock (?:him|her|them) "
    r"up|burn in hell|low iq|small brain|brain ?dead|mentally ill|brain cells?)\b"
)
