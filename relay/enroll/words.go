package enroll

import (
	"encoding/hex"
	"strings"
)

const wordCount = 6 // 48 bits

// Words returns the fingerprint of a key (Request.KeyID) as six words, for two
// people who compare two screens. Anything that is no key ID has none.
func Words(keyID string) string {
	raw, err := hex.DecodeString(keyID)
	if err != nil || len(raw) < wordCount {
		return ""
	}
	list := strings.Fields(wordList)
	words := make([]string, wordCount)
	for i := range words {
		words[i] = list[raw[i]]
	}
	return strings.Join(words, " ")
}

// wordList holds 256 words, one for each value of a byte: short, concrete,
// spelled as they sound, no two of them within one letter of each other.
const wordList = `
acorn almond amber anchor angel apple apron arrow atlas autumn badger bagel
bamboo banana banjo barley basket beacon beaver bell berry bicycle biscuit blanket
blossom bonnet bottle boulder bracket bread bridge broom bucket buffalo butter cabbage
cabin cactus camel camera candle canoe canyon carpet carrot castle cedar cellar
cherry chimney cider circus clover cobalt coconut coffee comet copper coral cotton
cradle crater cricket crown crystal cupboard curtain cushion daisy dolphin donkey dragon
drum eagle easel echo elbow engine envelope falcon feather fern fiddle finger
flamingo flute forest fossil fountain fox galaxy garden garlic giraffe glacier glove
goblet gorilla grape guitar hammer harbour harvest hazel hedge helmet honey hornet
igloo iris island ivory jacket jaguar jelly jigsaw jungle kayak kettle kitten
koala ladder lagoon lantern laurel lava lemon lily lizard lobster locket lotus
magnet mango maple marble meadow melon mirror monsoon mosaic moth muffin museum
mustard napkin nectar needle nest nickel noodle nutmeg oak oasis ocean olive
onion orbit orchid otter oyster paddle pancake panda papaya peach pebble pelican
pencil pepper piano pigeon pillow pilot planet plum pollen pony poppy potato
prism pumpkin puzzle pyramid quartz quilt rabbit raccoon radish rainbow raven ribbon
river robin rose ruby saffron salmon sandal sapphire satin scarf shadow shovel
silver sketch sledge slipper sparrow spider spinach spruce squirrel stadium summer sunset
swan tablet teapot temple thimble thistle thunder ticket tiger tomato topaz tornado
tractor trumpet tulip tundra turnip turtle umbrella unicorn valley vanilla velvet violet
violin volcano waffle wagon walnut walrus whale window winter wolf wombat yellow
yogurt zebra zigzag zipper
`
