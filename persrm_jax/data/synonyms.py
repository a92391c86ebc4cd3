"""Words that stand for each other in most English sentences, inflected alike: a list of our own."""

_GROUPS = """
actually indeed, admit concede, admitted conceded, afraid frightened, again anew, agree concur,
agreed concurred, allow permit, allowed permitted, allows permits, almost nearly, although
though, always forever, among amongst, anger rage, angry furious, announce declare, announced
declared, announces declares, announcing declaring, answer reply, answered replied, answers
replies, apart separately, approximately roughly, area region, areas regions, argue contend,
argued contended, ask inquire, asked inquired, attack assault, attacked assaulted, attacks
assaults, avoid evade, avoided evaded, bad poor, battle fight, battles fights, beautiful lovely,
began started, beginning starting, below beneath, benefit advantage, benefits advantages, best
finest, better superior, between amid, big large, book volume, books volumes, bought purchased,
boy lad, brave bold, bright brilliant, build construct, building constructing, builds
constructs, built constructed, business enterprise, businesses enterprises, buy purchase, buying
purchasing, buys purchases, cars automobiles, chance opportunity, chances opportunities, changed
altered, changing altering, child youngster, children youngsters, chooses selects, chose
selected, claimed asserted, clean spotless, clear plain, clearly plainly, clever smart, closed
shut, clothes garments, cold chilly, common ordinary, companies firms, company firm, completely
fully, consider contemplate, considered contemplated, correct accurate, countries nations,
courage bravery, cried wept, crowd throng, cruel harsh, cry weep, danger peril, dangerous
hazardous, dangers perils, dark dim, deal agreement, deals agreements, decide determine, decided
determined, decline decrease, deep profound, defeat loss, denied disputed, deny dispute,
describe depict, described depicted, despite notwithstanding, different distinct, dirty filthy,
doctor physician, doctors physicians, dry arid, during throughout, easily readily, easy simple,
empty vacant, enemies foes, enemy foe, enough sufficient, equal identical, exactly precisely,
explain clarify, explained clarified, fall drop, falling dropping, falls drops, false untrue,
famous renowned, fear dread, feared dreaded, fell dropped, finally eventually, find discover,
finding discovering, finds discovers, foreign overseas, found discovered, friend companion,
friends companions, further additional, gentle mild, girl lass, goal aim, goals aims, great
grand, grew increased, grow increase, growing increasing, grows increases, growth expansion,
happen occur, happened occurred, happens occurs, happy glad, hate detest, hated detested, hid
concealed, hide conceal, hill slope, holding gripping, honest sincere, hot warm, however
nevertheless, huge enormous, hurried rushed, hurry rush, idea notion, ideas notions, immediately
instantly, important significant, job position, jobs positions, joy delight, kinds sorts,
largely mostly, laugh chuckle, laughed chuckled, laws statutes, lawyer attorney, lawyers
attorneys, local regional, mainly chiefly, major principal, many numerous, meal dinner, meet
encounter, meeting gathering, meetings gatherings, met encountered, mistake error, mistakes
errors, modern contemporary, moment instant, moments instants, money cash, narrow slim,
necessary essential, now currently, official officer, officials officers, often frequently, only
merely, opinion view, opinions views, pain ache, pains aches, part portion, particularly
especially, parts portions, path track, people folk, perhaps maybe, period span, piece fragment,
pieces fragments, possible feasible, private personal, probably likely, problem difficulty,
problems difficulties, profit gain, profits gains, pull drag, pulled dragged, push press, pushed
pressed, question query, questions queries, quick rapid, quickly rapidly swiftly, quite rather,
raise lift, raised lifted, raising lifting, rarely seldom, reach attain, reached attained,
reaches attains, real actual, really truly, recent latest, recently lately, remain stay,
remained stayed, remains stays, result outcome, results outcomes, rich wealthy, rise climb,
rises climbs, rising climbing, road street, roads streets, room chamber, rooms chambers, rose
climbed, rule regulation, sad sorrowful, safe secure, said stated, saying stating, sea ocean,
seem appear, seemed appeared, seems appears, several various, ship vessel, ships vessels, shop
store, shops stores, shout yell, shouted yelled, show display, showed displayed, shows displays,
similar alike, slow sluggish, slowly gradually, small little, smile grin, smiled grinned,
sometimes occasionally, somewhat slightly, soon shortly, sorrow grief, speaking talking, speaks
talks, spoke talked, stone rock, stones rocks, stop halt, stopped halted, stops halts, storm
tempest, strange odd, strength power, strict stern, strong powerful, student pupil, students
pupils, suddenly abruptly, task duty, tasks duties, teacher instructor, teachers instructors,
tell inform, therefore thus, thick dense, thin slender, threw tossed, together jointly, told
informed, toward towards, town village, trade commerce, tried attempted, trips journeys, true
genuine, trying attempting, ugly hideous, until till, useful helpful, useless worthless, usual
customary, usually generally, very extremely, victories triumphs, victory triumph, voice tone,
voices tones, wait linger, waited lingered, walk stroll, walked strolled, walking strolling, war
conflict, wars conflicts, weak feeble, wet damp, wide broad, wind breeze, woman lady, women
ladies, wonder marvel, worker employee, workers employees, worried troubled, worry fret, worse
inferior
"""

SYNONYMS: dict[str, tuple[str, ...]] = {
    word: tuple(other for other in group if other != word)
    for group in (words.split() for words in _GROUPS.split(","))
    for word in group
}
"""What each word may give way to, in lower case."""
