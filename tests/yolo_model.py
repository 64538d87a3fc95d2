"""A one-stage detector as users write it: C2f blocks, SPPF, a neck, a head with a branch per level."""

from __future__ import annotations

import torch
from torch import nn


class Conv(nn.Module):
    def __init__(self, i, o, k=1, s=1, g=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(o)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c, shortcut=True):
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(c, c, 3), Conv(c, c, 3), shortcut

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    def __init__(self, i, o, n=1, shortcut=False):
        super().__init__()
        self.c = o // 2
        self.cv1, self.cv2 = Conv(i, 2 * self.c), Conv((2 + n) * self.c, o)
        self.m = nn.ModuleList(Bottleneck(self.c, shortcut) for _ in range(n))

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    def __init__(self, i, o, k=5):
        super().__init__()
        self.cv1, self.cv2 = Conv(i, i // 2), Conv(i * 2, o)
        self.m = nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x):
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class DFL(nn.Module):
    def __init__(self, c1=16):
        super().__init__()
        self.conv = nn.Conv2d(c1, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(c1, dtype=torch.float).view(1, c1, 1, 1)
        self.c1 = c1

    def forward(self, x):
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.c1, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    def __init__(self, nc, ch, reg=16):
        super().__init__()
        self.nc, self.reg, self.no = nc, reg, nc + 4 * reg
        c2, c3 = max(16, ch[0] // 4, reg * 4), max(ch[0], min(nc, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(x, c2, 3), Conv(c2, c2, 3), nn.Conv2d(c2, 4 * reg, 1)) for x in ch
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(Conv(x, c3, 3), Conv(c3, c3, 3), nn.Conv2d(c3, nc, 1)) for x in ch
        )
        self.dfl = DFL(reg)
        self.strides = (8.0, 16.0, 32.0)

    def forward(self, x):
        x = list(x)
        for i in range(3):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        if self.training:
            return x
        box, cls = torch.cat([xi.view(xi.shape[0], self.no, -1) for xi in x], 2).split(
            (self.reg * 4, self.nc), 1
        )
        anchors, strides = self.anchors(x)
        lt, rb = self.dfl(box).chunk(2, 1)
        a, b = anchors - lt, anchors + rb
        dbox = torch.cat(((a + b) / 2, b - a), 1) * strides
        return torch.cat((dbox, cls.sigmoid()), 1), x

    def anchors(self, feats):
        pts, st = [], []
        for f, s in zip(feats, self.strides, strict=True):
            h, w = f.shape[2:]
            sx = torch.arange(w, device=f.device, dtype=f.dtype) + 0.5
            sy = torch.arange(h, device=f.device, dtype=f.dtype) + 0.5
            sy, sx = torch.meshgrid(sy, sx, indexing="ij")
            pts.append(torch.stack((sx, sy), -1).view(-1, 2))
            st.append(torch.full((h * w, 1), s, dtype=f.dtype, device=f.device))
        return torch.cat(pts).transpose(0, 1), torch.cat(st).transpose(0, 1)


class Yolo(nn.Module):
    def __init__(self, nc=4, w=16):
        super().__init__()
        c = [w, w * 2, w * 4, w * 8]
        self.stem = Conv(3, c[0] // 2 * 1, 3, 2)
        self.s1 = nn.Sequential(Conv(c[0] // 2, c[0], 3, 2), C2f(c[0], c[0], 1, True))
        self.s2 = nn.Sequential(Conv(c[0], c[1], 3, 2), C2f(c[1], c[1], 2, True))
        self.s3 = nn.Sequential(Conv(c[1], c[2], 3, 2), C2f(c[2], c[2], 2, True))
        self.s4 = nn.Sequential(Conv(c[2], c[3], 3, 2), C2f(c[3], c[3], 1, True), SPPF(c[3], c[3]))
        self.up = nn.Upsample(scale_factor=2)
        self.n1 = C2f(c[3] + c[2], c[2])
        self.n2 = C2f(c[2] + c[1], c[1])
        self.d1 = Conv(c[1], c[1], 3, 2)
        self.n3 = C2f(c[1] + c[2], c[2])
        self.d2 = Conv(c[2], c[2], 3, 2)
        self.n4 = C2f(c[2] + c[3], c[3])
        self.detect = Detect(nc, (c[1], c[2], c[3]))

    def forward(self, x):
        p3 = self.s2(self.s1(self.stem(x)))
        p4 = self.s3(p3)
        p5 = self.s4(p4)
        t4 = self.n1(torch.cat((self.up(p5), p4), 1))
        t3 = self.n2(torch.cat((self.up(t4), p3), 1))
        o4 = self.n3(torch.cat((self.d1(t3), t4), 1))
        o5 = self.n4(torch.cat((self.d2(o4), p5), 1))
        return self.detect((t3, o4, o5))
