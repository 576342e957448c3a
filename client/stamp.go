package client

import (
	"io/fs"
	"os"
	"time"
)

// fileStamp is what a file looked like from outside, by which a change of what is in it is noticed.
type fileStamp struct {
	info fs.FileInfo
	at   time.Time
}

// unsettled is for how long after a file's last change another one may leave its time as it is: file systems reckon in ticks.
const unsettled = 2 * time.Second

func stampOf(path string) (fileStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}, err
	}
	return fileStamp{info: info, at: time.Now()}, nil
}

// same tells whether the file is surely the one that was seen before.
func (s fileStamp) same(before fileStamp) bool {
	return before.info != nil && os.SameFile(s.info, before.info) && s.info.Size() == before.info.Size() &&
		s.info.ModTime().Equal(before.info.ModTime()) && before.at.Sub(before.info.ModTime()) > unsettled
}
