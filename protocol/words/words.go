// Package words spells fingerprints for people who compare two screens.
package words

import "strings"

// Count is how many words a fingerprint has: 48 bits.
const Count = 6

// Of returns the first bytes of a hash as Count words with spaces between, or
// "" when the hash is shorter than that.
func Of(hash []byte) string {
	if len(hash) < Count {
		return ""
	}
	words := make([]string, Count)
	for i := range words {
		words[i] = list[hash[i]]
	}
	return strings.Join(words, " ")
}

// List returns the 256 words in the order of the bytes that they stand for, for
// pages that compute the words themselves.
func List() []string { return append([]string(nil), list...) }

var list = strings.Fields(wordList)

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
