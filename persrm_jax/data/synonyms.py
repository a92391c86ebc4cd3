"""Words that stand for each other in most English sentences, inflected alike: a list of our own."""

_GROUPS = """
about around, actually indeed, admit concede, admitted conceded, afraid frightened, again anew,
agree concur, agreed concurred, allow permit, allowed permitted, allows permits, almost nearly,
also likewise, although though, always forever, among amongst, anger rage, angry furious,
announce declare, announced declared, announces declares, announcing declaring, answer reply,
answered replied, answers replies, apart separately, approximately roughly, area region, areas
regions, argue contend, argued contended, ask inquire, asked inquired, attack assault, attacked
assaulted, attacks assaults, avoid evade, avoided evaded, bad poor, battle fight, battles
fights, beautiful lovely, because since, began started, begin start, beginning starting, begins
starts, below beneath, benefit advantage, benefits advantages, best finest, better superior,
between amid, big large, book volume, books volumes, bought purchased, boy lad, brave bold,
break shatter, bright brilliant, broke shattered, build construct, building constructing, builds
constructs, built constructed, business enterprise, businesses enterprises, buy purchase, buying
purchasing, buys purchases, calm quiet, cars automobiles, cause prompt, caused prompted, certain
sure, certainly surely, chance opportunity, chances opportunities, change alter, changed
altered, changes alters, changing altering, child youngster, children youngsters, choose select,
chooses selects, chose selected, claim assert, claimed asserted, claims asserts, clean spotless,
clear plain, clearly plainly, clever smart, closed shut, clothes garments, cold chilly, common
ordinary, companies firms, company firm, complete full, completely fully, consider contemplate,
considered contemplated, correct accurate, countries nations, country nation, courage bravery,
cried wept, crowd throng, cruel harsh, cry weep, danger peril, dangerous hazardous, dangers
perils, dark dim, deal agreement, deals agreements, decide determine, decided determined,
decline decrease, deep profound, defeat loss, denied disputed, deny dispute, describe depict,
described depicted, despite notwithstanding, different distinct, dirty filthy, doctor physician,
doctors physicians, dry arid, during throughout, early initial, easily readily, easy simple,
empty vacant, enemies foes, enemy foe, enough sufficient, entire whole, equal identical, exactly
precisely, expect anticipate, expected anticipated, expecting anticipating, expects anticipates,
explain clarify, explained clarified, fall drop, falling dropping, falls drops, false untrue,
famous renowned, fear dread, feared dreaded, fell dropped, finally eventually, find discover,
finding discovering, finds discovers, foreign overseas, found discovered, friend companion,
friends companions, further additional, gave provided, gentle mild, get obtain, gets obtains,
girl lass, give provide, gives provides, goal aim, goals aims, good fine, got obtained, great
grand, grew increased, grow increase, growing increasing, grows increases, growth expansion,
happen occur, happened occurred, happens occurs, happy glad, hard difficult, hate detest, hated
detested, held gripped, help assist, helped assisted, helping assisting, helps assists, hid
concealed, hide conceal, hill slope, hold grip, holding gripping, honest sincere, hope aspire,
hoped aspired, hot warm, house home, houses homes, however nevertheless, huge enormous, hurried
rushed, hurry rush, idea notion, ideas notions, immediately instantly, important significant,
job position, jobs positions, join unite, joined united, joy delight, keep retain, keeps
retains, kept retained, kinds sorts, knew understood, know understand, knows understands,
largely mostly, laugh chuckle, laughed chuckled, laws statutes, lawyer attorney, lawyers
attorneys, leaders chiefs, local regional, love adore, loved adored, low modest, made created,
main chief, mainly chiefly, major principal, make create, makes creates, making creating, many
numerous, meal dinner, meet encounter, meeting gathering, meetings gatherings, met encountered,
mistake error, mistakes errors, modern contemporary, moment instant, moments instants, money
cash, narrow slim, necessary essential, need require, needed required, needs requires, noise
sound, noises sounds, now currently, official officer, officials officers, often frequently,
only merely, opinion view, opinions views, pain ache, pains aches, part portion, particularly
especially, parts portions, path track, people folk, perhaps maybe, period span, piece fragment,
pieces fragments, place spot, places spots, possible feasible, price cost, prices costs, private
personal, probably likely, problem difficulty, problems difficulties, profit gain, profits
gains, pull drag, pulled dragged, push press, pushed pressed, question query, questions queries,
quick fast rapid, quickly rapidly swiftly, quite rather, raise lift, raised lifted, raising
lifting, rarely seldom, reach attain, reached attained, reaches attains, real actual, really
truly, reasons causes, recent latest, recently lately, remain stay, remained stayed, remains
stays, result outcome, results outcomes, rich wealthy, rise climb, rises climbs, rising
climbing, road street, roads streets, room chamber, rooms chambers, rose climbed, rule
regulation, sad sorrowful, safe secure, said stated, saw noticed, saying stating, says states,
sea ocean, see notice, seem appear, seemed appeared, seems appears, sees notices, several
various, ship vessel, ships vessels, shop store, shops stores, shout yell, shouted yelled, show
display, showed displayed, shows displays, similar alike, slow sluggish, slowly gradually, small
little, smile grin, smiled grinned, sometimes occasionally, somewhat slightly, soon shortly,
sorrow grief, speaking talking, speaks talks, speech address, spoke talked, stone rock, stones
rocks, stop halt, stopped halted, stops halts, storm tempest, strange odd, strength power,
strict stern, strong powerful, student pupil, students pupils, suddenly abruptly, support
backing, supported backed, task duty, tasks duties, teacher instructor, teachers instructors,
tell inform, therefore thus, thick dense, thin slender, think believe, thinks believes, thought
believed, threw tossed, tiny minute, together jointly, told informed, total overall, toward
towards, town village, trade commerce, tried attempted, tries attempts, trip journey, trips
journeys, true genuine, try attempt, trying attempting, ugly hideous, until till, use employ,
used employed, useful helpful, useless worthless, uses employs, using employing, usual
customary, usually generally, very extremely, victories triumphs, victory triumph, voice tone,
voices tones, wait linger, waited lingered, walk stroll, walked strolled, walking strolling,
want wish, wanted wished, wants wishes, war conflict, wars conflicts, weak feeble, wet damp,
while whilst, wide broad, win prevail, wind breeze, woman lady, women ladies, won prevailed,
wonder marvel, worker employee, workers employees, worried troubled, worry fret, worse inferior,
wrong mistaken
"""

SYNONYMS: dict[str, tuple[str, ...]] = {
    word: tuple(other for other in group if other != word)
    for group in (words.split() for words in _GROUPS.split(","))
    for word in group
}
"""What each word may give way to, in lower case."""
